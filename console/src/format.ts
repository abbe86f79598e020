// Numbers and times, as people read them.
import { LOCALE, number, T } from "./texts";

export { number };

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

export function duration(seconds: number): string {
  const { second, minute, hour, day } = T.common.units;
  if (seconds < 1) return T.common.moment;
  if (seconds < 90) return `${Math.round(seconds)} ${second}`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} ${minute}`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} ${hour}`;
  return `${Math.round(seconds / 86400)} ${day}`;
}

/** What writes times in unix seconds. To make one takes as long as to write dozens of them. */
function writer(options: Intl.DateTimeFormatOptions): (seconds: number) => string {
  let made: Intl.DateTimeFormat | undefined;
  return (seconds) => {
    made ??= new Intl.DateTimeFormat(LOCALE, options);
    return made.format(seconds * 1000);
  };
}

const MINUTES = { hour: "2-digit", minute: "2-digit" } as const;
const DATE = { day: "2-digit", month: "2-digit", year: "numeric" } as const;

export const clock = writer(MINUTES);
const date = writer({ day: "numeric", month: "short", year: "numeric" });
export const fullTime = writer({ ...DATE, ...MINUTES, second: "2-digit", timeZoneName: "short" });

/** A time in unix seconds: the time of day if it is today, else the date. */
export function time(seconds: number): string {
  const isToday = new Date().toDateString() === new Date(seconds * 1000).toDateString();
  return (isToday ? clock : date)(seconds);
}

export const lastSegment = (path: string): string => path.slice(path.lastIndexOf("/") + 1);
