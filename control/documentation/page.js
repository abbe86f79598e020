// Swagger UI about this server's /openapi.json. The page's policy lets it ask no other host.

// As the console, in which people choose: light, dark, or as the system.
const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => {
  const chosen = localStorage.getItem("gfs-theme") ?? "auto";
  const root = document.documentElement;
  root.dataset.theme = chosen;
  root.classList.toggle("dark-mode", chosen === "auto" ? dark.matches : chosen === "dark");
};
dark.addEventListener("change", followScheme);
addEventListener("storage", followScheme);
followScheme();

// Texts may become HTML, as Swagger UI needs, in which the page's policy lets no script run; they
// never become a script, nor the address of one.
window.trustedTypes?.createPolicy("default", { createHTML: (text) => text });

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

/** What a screen reader says: names for what has none, and no link inside a button. */
const readable = () => ({
  wrapComponents: {
    DeepLink: (_, { React }) => ({ text }) => React.createElement("span", null, text),
    TextArea: (Area, { React }) => (props) =>
      React.createElement(Area, { "aria-label": "Request body", ...props }),
    Input: (Input, { React }) => (props) =>
      React.createElement(Input, props.type === "file" ? { "aria-label": "File", ...props } : props),
    ServersContainer: () => () => null, // there is one
  },
});

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  plugins: [withoutSecrets, readable],
  deepLinking: true,
  filter: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  // What is tried has the credentials that were entered, not a session's cookie.
  requestInterceptor: (request) => ({ ...request, credentials: "omit" }),
});
