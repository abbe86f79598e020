// From what a form holds to a request, and to the curl command that is the same.
// Plain functions over plain data: nothing here touches the page.

/**
 * The path with its parameters and query filled in. A parameter that spans slashes
 * keeps them. Throws an Error that names a path parameter that is missing.
 */
export function target(path, parameters, values) {
  let filled = path;
  const query = new URLSearchParams();
  for (const parameter of parameters) {
    const value = values[key(parameter)] ?? "";
    if (parameter.in === "path") {
      if (value === "") throw new Error(`${parameter.name}: give a value`);
      const parts = spansSlashes(parameter) ? value.split("/") : [value];
      filled = filled.replace(`{${parameter.name}}`, parts.map(encodeURIComponent).join("/"));
    } else if (parameter.in === "query" && value !== "") {
      query.append(parameter.name, value);
    }
  }
  const text = query.toString();
  return text ? `${filled}?${text}` : filled;
}

/** What tells a parameter from another of the same name in another place. */
export function key(parameter) {
  return `${parameter.in}:${parameter.name}`;
}

function spansSlashes(parameter) {
  return parameter.schema?.pattern === undefined;
}

/** The request's headers: those that were filled in, and the token. */
export function headers(parameters, values, token, serviceKey) {
  const found = {};
  for (const parameter of parameters) {
    const value = values[key(parameter)] ?? "";
    if (parameter.in === "header" && value !== "") found[parameter.name] = value;
  }
  if (serviceKey) found["X-Service-Key"] = serviceKey;
  if (token) found.Authorization = `Bearer ${token}`;
  return found;
}

/**
 * The command that sends the same. The token is left to the shell's $TOKEN, so that
 * what is copied from here holds no secret.
 */
export function curl(method, url, sent, body) {
  const parts = ["curl"];
  if (method === "HEAD") parts.push("-I");
  else if (method !== "GET") parts.push("-X", method);
  parts.push(quote(url));
  for (const [name, value] of Object.entries(sent)) {
    if (name === "Authorization") parts.push("-H", '"Authorization: Bearer $TOKEN"');
    else if (name === "X-Service-Key") parts.push("-H", '"X-Service-Key: $SERVICE_KEY"');
    else parts.push("-H", quote(`${name}: ${value}`));
  }
  if (body?.json !== undefined) {
    parts.push("-H", quote("Content-Type: application/json"), "-d", quote(body.json));
  }
  for (const [name, file] of Object.entries(body?.files ?? {})) {
    parts.push("-F", quote(`${name}=@${file}`));
  }
  // -T streams; --data-binary would read the file into memory first.
  if (body?.raw !== undefined) parts.push("-T", quote(body.raw));
  return parts.join(" ");
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
