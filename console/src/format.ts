// Numbers and times, as people read them.
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count: number): string {
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** The same without rounding, for people to change. */
export function exactBytes(count: number): string {
  let unit = 0;
  let value = count;
  while (value && value % 1024 === 0 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value} ${UNITS[unit]}`;
}

/** The bytes of what people write: 10 GiB, 1.5T. Without a unit it counts `one`. NaN: no size. */
export function bytesIn(text: string, one: number): number {
  const [, value, unit] = /^\s*(\d+(?:\.\d+)?)\s*(?:([KMGTP])i?B?|B)?\s*$/i.exec(text) ?? [];
  if (unit) return Number(value) * 1024 ** (" KMGTP".indexOf(unit.toUpperCase()));
  return Number(value) * (/b/i.test(text) ? 1 : one);
}

export const number = (value: number): string => value.toLocaleString("en");

export function duration(seconds: number): string {
  if (seconds < 1) return "< 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** A time in unix seconds: the time of day if it is today, else the date. */
export function time(seconds: number): string {
  const then = new Date(seconds * 1000);
  const today = new Date().toDateString() === then.toDateString();
  return today
    ? then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })
    : then.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
}

export const fullTime = (seconds: number): string =>
  new Date(seconds * 1000).toLocaleString("en-GB", { timeZoneName: "short" });

export const lastSegment = (path: string): string => path.slice(path.lastIndexOf("/") + 1);
