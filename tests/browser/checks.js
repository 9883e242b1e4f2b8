// What can be computed of WCAG AA. Each function returns what is wrong, in words.

const describe = (element) =>
  `${element.tagName.toLowerCase()}${element.id && `#${element.id}`}${[...element.classList].map((name) => `.${name}`).join("")}`;

const isShown = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;

const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/** Any CSS color as [red, green, blue, alpha], 0 to 255. */
function rgba(color) {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}

function over(front, back) {
  const alpha = front[3] / 255;
  return front.slice(0, 3).map((value, index) => value * alpha + back[index] * (1 - alpha));
}

function backgroundOf(element) {
  if (!element) return rgba("Canvas");
  const own = rgba(getComputedStyle(element).backgroundColor);
  return own[3] === 255 ? own : [...over(own, backgroundOf(element.parentElement)), 255];
}

function luminance(color) {
  const [red, green, blue] = color.slice(0, 3).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function ratio(one, other) {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

globalThis.checkContrast = () => {
  const wrong = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const hasHint = element.placeholder && element.value === "";
    if (!(hasText || hasHint) || !isShown(element) || element.closest(".hidden, :disabled, template")) continue;
    const style = getComputedStyle(element, hasHint ? "::placeholder" : null);
    const back = backgroundOf(element);
    const found = ratio(over(rgba(style.color), back), back);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (found < least) wrong.push(`${describe(element)}: ${found.toFixed(2)} below ${least}`);
  }
  // The edges of what one writes in, against what is around them.
  for (const element of document.querySelectorAll(".box, dialog[open] input")) {
    const found = ratio(rgba(getComputedStyle(element).borderTopColor), backgroundOf(element.parentElement));
    if (found < 3) wrong.push(`${describe(element)}: its edge ${found.toFixed(2)} below 3`);
  }
  return wrong;
};

globalThis.checkNames = () => {
  const wrong = [];
  for (const element of document.querySelectorAll("button, a, input, textarea, [tabindex], dialog, section, nav, aside")) {
    if (!isShown(element)) continue;
    const by = (element.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id));
    const names = [
      element.getAttribute("aria-label"),
      ...by.map((label) => label?.textContent),
      ...[...(element.labels ?? [])].map((label) => label.textContent),
      element.matches("button, a") ? element.textContent : "",
    ];
    if (!names.some((name) => name?.trim())) wrong.push(`${describe(element)}: no name`);
    if (element.tabIndex > 0) wrong.push(`${describe(element)}: a tabindex above 0`);
    const { width, height } = element.getBoundingClientRect();
    if (element.matches("button, input, textarea, nav a") && !element.matches(".link") && Math.min(width, height) < 24) {
      wrong.push(`${describe(element)}: ${width} × ${height} px is small`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  wrong.push(...ids.filter((id, index) => ids.indexOf(id) !== index).map((id) => `#${id} is there twice`));
  for (const image of document.querySelectorAll("svg, img")) {
    if (!image.matches("[aria-hidden=true], [alt], [aria-label]")) wrong.push(`${describe(image)}: neither name nor hidden`);
  }
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
  if (!document.documentElement.lang) wrong.push("no lang");
  return wrong;
};
