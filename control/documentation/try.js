// "Try it": a form for one route, its request, and the answer as it comes.

import { element } from "./element.js";
import { curl, headers, key, target } from "./request.js";
import { example } from "./schema.js";

/** More of an answer than this is not read: the page would hold it in memory. */
const ANSWER_BYTES_MAX = 16 * 1024 * 1024;
/** More of it than this is not shown. */
const SHOWN_CHARACTERS_MAX = 64 * 1024;

let forms = 0;

/**
 * The form of a route. `token` has `get()` and `set(text)`: where this page keeps it.
 */
export function tryForm(method, path, operation, components, token) {
  const prefix = `try-${(forms += 1)}`;
  const parameters = operation.parameters ?? [];
  const inputs = parameters.map((parameter, index) =>
    parameterField(`${prefix}-${index}`, parameter),
  );
  const body = bodyField(prefix, operation.requestBody, components);
  const service = needsServiceKey(operation) ? serviceField(prefix) : null;
  const stop = element("button", { type: "button", hidden: true }, "Stop");
  const result = element("div", { "aria-live": "polite" });
  const form = element(
    "form",
    { "aria-label": `Try ${method} ${path}` },
    inputs.map((field) => field.part),
    service?.part ?? null,
    body.part,
    element("button", { type: "submit" }, "Send"),
    stop,
    result,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const values = Object.fromEntries(inputs.map((field) => [field.key, field.input.value]));
    const aborter = new AbortController();
    stop.onclick = () => aborter.abort();
    stop.hidden = false;
    result.replaceChildren();
    try {
      const url = target(path, parameters, values);
      const sent = headers(parameters, values, token.get(), service?.input.value);
      result.append(
        element("h4", {}, "As a command"),
        element("pre", {}, curl(method, location.origin + url, sent, body.described())),
      );
      await send(method, url, sent, body, aborter.signal, result, token);
    } catch (error) {
      const story = aborter.signal.aborted ? "Stopped." : error.message;
      result.append(element("p", { class: "failure", role: "alert" }, story));
    } finally {
      stop.hidden = true;
    }
  });
  return form;
}

function needsServiceKey(operation) {
  return (operation.security ?? []).some((choice) => "serviceKey" in choice);
}

function serviceField(prefix) {
  const id = `${prefix}-service`;
  const input = element("input", { id, type: "password", autocomplete: "off" });
  return { input, part: element("div", {}, label(id, "X-Service-Key (header)"), input) };
}

function parameterField(id, parameter) {
  const schema = parameter.schema ?? {};
  const choices = schema.type === "boolean" ? [true, false] : schema.enum;
  const input = choices
    ? element(
        "select",
        { id },
        ["", ...choices].map((choice) => element("option", {}, String(choice))),
      )
    : element("input", {
        id,
        autocomplete: "off",
        spellcheck: "false",
        required: parameter.required ?? false,
        placeholder: schema.default === undefined ? null : String(schema.default ?? ""),
      });
  const text = `${parameter.name} (${parameter.in}${parameter.required ? ", required" : ""})`;
  return { key: key(parameter), input, part: element("div", {}, label(id, text), input) };
}

function label(id, text) {
  return element("label", { for: id }, text);
}

/**
 * The body's part of the form: `make()` gives what fetch sends, `type` its type where
 * the browser would not know, `described()` what curl would be told.
 */
function bodyField(prefix, requestBody, components) {
  const [type, content] = Object.entries(requestBody?.content ?? {})[0] ?? [];
  if (type === undefined) {
    return { part: null, type: null, make: () => undefined, described: () => null };
  }
  if (type === "application/json") return jsonField(prefix, content, components);
  if (type === "multipart/form-data") return formField(prefix, content);
  return rawField(prefix, type);
}

function jsonField(prefix, content, components) {
  const id = `${prefix}-body`;
  const input = element("textarea", { id, rows: "8", spellcheck: "false" });
  input.value = JSON.stringify(example(content.schema, components), null, 2);
  return {
    part: element("div", {}, label(id, "Body (JSON)"), input),
    type: "application/json",
    make: () => input.value,
    described: () => ({ json: input.value }),
  };
}

function formField(prefix, content) {
  const names = Object.keys(content.schema?.properties ?? {});
  const inputs = names.map((name) =>
    element("input", { id: `${prefix}-file-${name}`, type: "file" }),
  );
  const chosen = () => names.map((name, index) => [name, inputs[index].files[0]]);
  return {
    part: element(
      "div",
      {},
      names.map((name, index) => [label(inputs[index].id, `${name} (file)`), inputs[index]]).flat(),
    ),
    type: null,
    make: () => {
      const form = new FormData();
      for (const [name, file] of chosen()) if (file) form.append(name, file);
      return form;
    },
    described: () => ({
      files: Object.fromEntries(chosen().map(([name, file]) => [name, file?.name ?? "FILE"])),
    }),
  };
}

function rawField(prefix, type) {
  const id = `${prefix}-body`;
  const input = element("input", { id, type: "file" });
  return {
    part: element("div", {}, label(id, `Body (${type})`), input),
    type: type.includes("*") ? "application/octet-stream" : type,
    make: () => input.files[0] ?? "",
    described: () => ({ raw: input.files[0]?.name ?? "FILE" }),
  };
}

async function send(method, url, sent, body, signal, result, token) {
  const all = body.type === null ? sent : { ...sent, "Content-Type": body.type };
  const answer = await fetch(url, {
    method,
    headers: all,
    body: body.make(),
    signal,
    credentials: "omit",
    cache: "no-store",
  });
  const lines = [...answer.headers].map(([name, value]) => `${name}: ${value}`);
  result.append(
    element("h4", {}, `Answer: ${answer.status} ${answer.statusText}`.trim()),
    element("pre", {}, lines.join("\n")),
  );
  if (answer.body === null) return;
  const kind = answer.headers.get("Content-Type") ?? "";
  if (isText(kind)) await showText(answer, kind, result, token);
  else await offerFile(answer, kind, result);
}

function isText(kind) {
  return kind.startsWith("text/") || kind.includes("json");
}

/** Text as it comes: a stream of events is shown event by event. */
async function showText(answer, kind, result, token) {
  const shown = element("pre", { tabindex: "0" });
  result.append(shown);
  const decoder = new TextDecoder();
  let text = "";
  for await (const piece of pieces(answer)) {
    text += decoder.decode(piece, { stream: true });
    shown.textContent = text.slice(0, SHOWN_CHARACTERS_MAX);
  }
  if (kind.includes("json")) showJson(text, shown, result, token);
  if (text.length > SHOWN_CHARACTERS_MAX) {
    result.append(element("p", { class: "quiet" }, "Only the beginning is shown."));
  }
}

function showJson(text, shown, result, token) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return;
  }
  shown.textContent = JSON.stringify(value, null, 2).slice(0, SHOWN_CHARACTERS_MAX);
  if (typeof value?.token !== "string") return;
  const button = element("button", { type: "button" }, "Use this token from now on");
  button.addEventListener("click", () => {
    token.set(value.token);
    button.replaceWith(element("p", { role: "status" }, "It is used from now on."));
  });
  result.append(button);
}

async function offerFile(answer, kind, result) {
  const kept = [];
  for await (const piece of pieces(answer)) kept.push(piece);
  const blob = new Blob(kept, { type: "application/octet-stream" });
  const link = element("a", { href: URL.createObjectURL(blob), download: "answer" }, "Save it");
  result.append(element("p", {}, `${blob.size} bytes of ${kind || "unknown type"}. `, link));
}

/** The answer's body, up to the bound. Throws an Error beyond it. */
async function* pieces(answer) {
  const reader = answer.body.getReader();
  let count = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      count += value.length;
      if (count > ANSWER_BYTES_MAX) {
        throw new Error("The answer is too large for this page: use the command above.");
      }
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
