/**
 * The keys of a list of messages.
 *
 * The list is one stop of the Tab key; the arrows go from message to message, and from there Tab
 * goes on to what can be done with it.
 */

/**
 * @param view the scroller
 * @param toNewest called for End
 * @param onEscape called for Escape
 */
export function setUpListKeys(view, { toNewest, onEscape }) {
  view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      onEscape();
      return;
    }
    if (event.key === "End") {
      event.preventDefault();
      toNewest().then(() => [...view.querySelectorAll("article")].at(-1)?.focus({ preventScroll: true }));
      return;
    }
    const articles = [...view.querySelectorAll("article")];
    const from = articles.indexOf(document.activeElement?.closest("article"));
    const to = targetOf(event.key, articles, from, view);
    if (to === null) return;
    event.preventDefault();
    articles[to].focus({ preventScroll: true });
    articles[to].scrollIntoView({ block: "nearest" });
    // The first one is below the day and whatever else stands at the top.
    if (to === 0) view.scrollTop = 0;
  });
}

/** The index of the article that *key* goes to from that at *from* (-1: none); null for other keys. */
function targetOf(key, articles, from, view) {
  const last = articles.length - 1;
  const within = (index) => Math.max(0, Math.min(last, index));
  const top = (index) => articles[index].getBoundingClientRect().top;
  if (last < 0) return null;
  if (key === "Home") return 0;
  if (from < 0) {
    // Nothing has the focus yet: what is in view at that end gets it.
    const { top: above, bottom: below } = view.getBoundingClientRect();
    if (key === "ArrowDown") return within(articles.findIndex((_, index) => top(index) >= above));
    if (key === "ArrowUp") return within(articles.findLastIndex((_, index) => top(index) < below));
    if (key !== "PageUp" && key !== "PageDown") return null;
    from = within(articles.findIndex((_, index) => top(index) >= above));
  }
  if (key === "ArrowUp") return within(from - 1);
  if (key === "ArrowDown") return within(from + 1);
  const page = view.clientHeight * 0.9;
  // One further at least: a message may be taller than the page.
  if (key === "PageUp") {
    return within(Math.min(from - 1, articles.findIndex((_, index) => top(index) > top(from) - page)));
  }
  if (key === "PageDown") {
    return within(Math.max(from + 1, articles.findLastIndex((_, index) => top(index) < top(from) + page)));
  }
  return null;
}
