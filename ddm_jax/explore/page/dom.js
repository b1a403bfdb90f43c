// Elements, numbers and requests. Texts become text nodes: nothing that data say is ever markup.

export const at = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Put children in a place. Whoever uses a keyboard stays on the button that they pressed, by its
// `data-key`, or comes to the section where it was.
export function redraw(place, ...children) {
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  place.replaceChildren(...children);
  if (!focused) return;
  const same = [...place.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused.dataset.key);
  (same && !same.disabled ? same : place.closest("[tabindex]"))?.focus({ preventScroll: true });
}

export function drawn(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

export function number(value, sign = false) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "undefined";
  const size = Math.abs(value);
  const digits = size === 0 ? "0" : size >= 100 ? size.toFixed(0) : String(Number(size.toPrecision(3)));
  return (value < 0 ? "−" : sign ? "+" : "") + digits;
}

export const percent = (value) => `${(100 * value).toFixed(0)} %`;

export function seconds(value) {
  return value >= 90 ? `${(value / 60).toFixed(0)} min` : `${Number(value.toPrecision(2))} s`;
}

async function answered(response) {
  if (response.ok) return response.json();
  throw new Error(await response.text());
}

export const ask = async (path, signal) => answered(await fetch(`/api/${path}`, { signal }));

export const send = async (path, body, signal) =>
  answered(await fetch(`/api/${path}`, { method: "POST", body: JSON.stringify(body), signal }));

// A file for the user, made here.
export function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text])), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
