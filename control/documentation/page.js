// Swagger UI about this server's /openapi.json. The page's policy lets it ask no other host.

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

const SECRETS = { Authorization: "Bearer <token>", "X-Service-Key": "<key>" };

/** The command that is shown, and copied from here, holds no secret. */
const withoutSecrets = () => ({
  wrapComponents: {
    curl: (Curl, { React }) => (props) => {
      const request = props.request.update("headers", (headers) =>
        headers?.map((value, name) => SECRETS[name] ?? value),
      );
      return React.createElement(Curl, { ...props, request });
    },
  },
});

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  plugins: [withoutSecrets],
  deepLinking: true,
  filter: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  // What is tried has the credentials that were entered, not a session's cookie.
  requestInterceptor: (request) => ({ ...request, credentials: "omit" }),
});
