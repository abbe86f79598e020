// The page: every route of /openapi.json by module, found by words, opened one by one.

import { element, prose, table } from "./element.js";
import { fields, limits, typeName } from "./schema.js";
import { tryForm } from "./try.js";

const METHODS = ["get", "head", "post", "put", "patch", "delete"];
const byId = (id) => document.getElementById(id);

/** The token is in this variable and in its field, and nowhere else. */
let kept = "";
const token = {
  get: () => kept,
  set(text) {
    kept = text;
    byId("token").value = text;
  },
};

async function start() {
  const routes = byId("routes");
  try {
    const answer = await fetch("/openapi.json", { credentials: "omit" });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    const story = `The routes cannot be shown: ${error.message}. Load the page again.`;
    routes.append(element("p", { class: "failure", role: "alert" }, story));
  }
  routes.setAttribute("aria-busy", "false");
}

function show(api) {
  document.title = `${api.info.title}: API`;
  byId("title").textContent = api.info.title;
  byId("version").textContent = `Version ${api.info.version}.`;
  byId("routes").append(...prose(api.info.description ?? ""));
  const components = api.components?.schemas ?? {};
  const entries = list(api).map((operation) => ({
    ...operation,
    part: route(operation, components),
  }));
  const sections = api.tags.map((tag) => module(tag, entries));
  byId("routes").append(...sections);
  byId("modules").append(
    element(
      "ul",
      {},
      api.tags.map((tag) =>
        element("li", {}, element("a", { href: `#module-${tag.name}` }, tag.name)),
      ),
    ),
  );
  byId("filter").addEventListener("input", () => filter(entries, sections));
  byId("token").addEventListener("input", (event) => (kept = event.target.value.trim()));
  filter(entries, sections);
  openLinked();
  addEventListener("hashchange", openLinked);
}

/** Every operation with its path and method, and the words it is found by. */
function list(api) {
  return Object.entries(api.paths).flatMap(([path, operations]) =>
    METHODS.filter((method) => method in operations).map((method) => {
      const operation = operations[method];
      const words = [method, path, operation.summary, operation.description, operation["x-scope"]];
      return {
        path,
        method: method.toUpperCase(),
        operation,
        words: words.join(" ").toLowerCase(),
      };
    }),
  );
}

function module(tag, entries) {
  const own = entries.filter((entry) => entry.operation.tags[0] === tag.name);
  return element(
    "section",
    { "aria-labelledby": `module-${tag.name}` },
    element("h2", { id: `module-${tag.name}` }, tag.name),
    ...prose(tag.description ?? ""),
    own.map((entry) => entry.part),
  );
}

function route({ path, method, operation }, components) {
  const inside = element("div");
  const part = element(
    "details",
    { class: "route", id: operation.operationId },
    element(
      "summary",
      {},
      element("span", { class: `method ${method.toLowerCase()}` }, method),
      " ",
      element("code", {}, path),
      " ",
      operation.summary,
    ),
    inside,
  );
  // Made when it is first opened: a form for each of a hundred routes costs time.
  part.addEventListener("toggle", () => {
    if (part.open && !inside.hasChildNodes()) fill(inside, path, method, operation, components);
  });
  return part;
}

function fill(inside, path, method, operation, components) {
  inside.append(...prose(operation.description ?? ""));
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    inside.append(
      element("h3", {}, "Parameters"),
      table(
        "Parameters",
        ["Name", "In", "Type", "Required", "Meaning"],
        parameters.map((parameter) => [
          parameter.name,
          parameter.in,
          typeName(parameter.schema),
          parameter.required ? "yes" : "no",
          [parameter.description, limits(parameter.schema)].filter(Boolean).join("; "),
        ]),
      ),
    );
  }
  if (operation.requestBody) {
    inside.append(element("h3", {}, "Body"), ...prose(operation.requestBody.description ?? ""));
    inside.append(...contents(operation.requestBody.content, components, "Fields of the body"));
  }
  inside.append(element("h3", {}, "Answers"), ...answers(operation.responses, components));
  inside.append(
    element("h3", {}, "Try it"),
    tryForm(method, path, operation, components, token),
  );
}

function answers(responses, components) {
  const all = Object.entries(responses);
  const good = all.filter(([status]) => Number(status) < 400);
  const bad = all.filter(([status]) => Number(status) >= 400);
  return [
    ...good.flatMap(([status, response]) => [
      element("p", {}, element("strong", {}, status), ` ${response.description}`),
      ...contents(response.content, components, `Fields of the answer ${status}`),
    ]),
    table(
      "Refusals",
      ["Status", "Meaning"],
      bad.map(([status, response]) => [status, response.description]),
    ),
  ];
}

/** Each type of content, and its fields if it has any. */
function contents(content, components, caption) {
  return Object.entries(content ?? {}).flatMap(([type, { schema }]) => {
    const rows = fields(schema ?? {}, components);
    return [
      element("p", { class: "quiet" }, `${type}: ${typeName(schema ?? {})}`),
      rows.length ? table(caption, ["Field", "Type", "Required", "Meaning"], rows) : null,
    ].filter((part) => part !== null);
  });
}

/** Leave what holds all the words that are looked for. */
function filter(entries, sections) {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const entry of entries) {
    entry.part.hidden = !words.every((word) => entry.words.includes(word));
  }
  for (const section of sections) {
    section.hidden = !section.querySelector("details:not([hidden])");
  }
  const found = entries.filter((entry) => !entry.part.hidden).length;
  byId("found").textContent = `${found} of ${entries.length} routes`;
}

/** Open the route that the address ends with. */
function openLinked() {
  const linked = byId(decodeURIComponent(location.hash.slice(1)));
  if (linked?.matches("details")) {
    linked.open = true;
    linked.scrollIntoView();
  }
}

start();
