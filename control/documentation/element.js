// Making DOM elements. Whatever comes from the document or a server goes in as
// text, never as markup.

/**
 * An element with attributes and children; a string is a text node, null is left out.
 * An attribute that is true is there without a value; false and null are left out.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

/** Paragraphs, as empty lines part them. */
export function prose(text) {
  return text
    .split(/\n\s*\n/)
    .filter((part) => part.trim())
    .map((part) => element("p", {}, inline(part)));
}

/** Text in which `code` stands between backticks. */
function inline(text) {
  return text.split("`").map((piece, index) => (index % 2 ? element("code", {}, piece) : piece));
}

/** A table that scrolls on its own where the screen is narrow. */
export function table(caption, heads, rows) {
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element(
        "thead",
        {},
        element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head))),
      ),
      element(
        "tbody",
        {},
        rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, inline(cell))))),
      ),
    ),
  );
}
