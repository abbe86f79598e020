// Configurations of tools for an S3 key, to be copied.

/** `space` is the only storage namespace that the key reaches, if any. */
export function configurations(
  endpoint: string,
  key: string,
  secret: string,
  space: string,
): Record<string, string> {
  return {
    awscli: [
      `export AWS_ENDPOINT_URL=${endpoint} AWS_REGION=us-east-1`,
      `export AWS_ACCESS_KEY_ID=${key}`,
      `export AWS_SECRET_ACCESS_KEY=${secret}`,
      `aws s3 ls${space && ` s3://${space}`}`,
    ].join("\n"),
    rclone: [
      `# ~/.config/rclone/rclone.conf; then:  rclone ${space ? `ls gfs:${space}` : "lsd gfs:"}`,
      "[gfs]",
      "type = s3",
      "provider = Other",
      `endpoint = ${endpoint}`,
      "region = us-east-1",
      `access_key_id = ${key}`,
      `secret_access_key = ${secret}`,
    ].join("\n"),
    restic: [
      `export AWS_ACCESS_KEY_ID=${key}`,
      `export AWS_SECRET_ACCESS_KEY=${secret}`,
      `export RESTIC_REPOSITORY=s3:${endpoint}/${space || "backup"}`,
      "restic init",
    ].join("\n"),
    fsspec: [
      "import fsspec  # with s3fs",
      "",
      "options = {",
      `    "key": "${key}",`,
      `    "secret": "${secret}",`,
      `    "client_kwargs": {"endpoint_url": "${endpoint}", "region_name": "us-east-1"},`,
      "}",
      `print(fsspec.filesystem("s3", **options).ls("${space}"))`,
      `# pandas.read_csv("s3://${space || "BUCKET"}/table.csv", storage_options=options)`,
    ].join("\n"),
  };
}
