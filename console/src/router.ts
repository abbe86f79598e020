// The place in the page is what follows the # of its address: #/files/photos/2026?sort=size
import { Store } from "./store";

export interface Place {
  /** The decoded segments of the path. */
  path: string[];
  query: URLSearchParams;
}

function here(): Place {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const parts = path.split("/").filter(Boolean);
  return { path: parts.map(decoded), query: new URLSearchParams(query) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const place = new Store(here());
addEventListener("hashchange", () => place.set(here()));

export function link(...path: string[]): string {
  return "#/" + path.map(encodeURIComponent).join("/");
}

export function go(target: string): void {
  location.hash = target;
}
