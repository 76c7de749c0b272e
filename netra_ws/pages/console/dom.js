/** Building elements. Text from outside becomes text nodes only: no markup is ever parsed. */

const ONE_LINE = 40; // characters; as many fit beside each other in the two columns of a tool call
const SVG = "http://www.w3.org/2000/svg";

/**
 * Return an element.
 *
 * @param {string} name tag, with classes after dots: `div.run`
 * @param {Record<string, string | number | boolean | null | undefined>} [attributes] `testid` becomes `data-testid`;
 *   false, null and undefined are left out
 * @param {...(Node | string | null | undefined)} children strings become text nodes
 */
export function element(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length > 0) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    made.setAttribute(key === "testid" ? "data-testid" : key, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return one of the icons of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Return any JSON value for reading: text as it is, what is short on one line, everything else indented. */
export function pretty(value) {
  if (typeof value === "string") return value;
  const lines = JSON.stringify(value ?? null, null, 2);
  // Line ends inside of JSON texts are escaped, so each one here is of the layout.
  const line = lines.replace(/([[{])\n\s*|\n\s*(?=[\]}])/g, "$1").replace(/\n\s*/g, " ");
  return line.length <= ONE_LINE ? line : lines;
}

/** Return a scrollable box with a JSON value. */
export function jsonBox(value, testid) {
  return element("pre.json", { testid, tabindex: "0" }, pretty(value));
}

/** Return `durationMs` in the unit in which it reads best. */
export function duration(durationMs) {
  if (!Number.isFinite(durationMs)) return "";
  if (durationMs < 1) return "< 1 ms";
  if (durationMs < 1_000) return `${Math.round(durationMs)} ms`;
  const seconds = durationMs / 1_000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Return a server time (Unix seconds or ISO 8601) as a Date, or null. */
export function toDate(time) {
  const date = typeof time === "number" ? new Date(time * 1_000) : new Date(time ?? NaN);
  return Number.isNaN(date.getTime()) ? null : date;
}

/** Return a moment as a list shows it: the hour today, the day before that. */
export function briefTime(date, now = new Date()) {
  if (!date) return "";
  if (date.toDateString() === now.toDateString()) {
    return date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  }
  const sameYear = date.getFullYear() === now.getFullYear();
  return date.toLocaleDateString(undefined, { day: "numeric", month: "short", year: sameYear ? undefined : "numeric" });
}

/** Return the start of a text, as a title. */
export function shortened(text, length = 60) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length <= length ? line : `${line.slice(0, length - 1).trimEnd()}…`;
}
