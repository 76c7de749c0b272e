/** The list of threads, newest first. */

import { briefTime, element, toDate } from "/console/dom.js";

export const UNTITLED = "Untitled conversation";

export class ThreadList {
  #list;
  #onOpen;
  #threads = new Map();
  #busy = new Set();
  #asking = new Set();
  #current = null;

  /**
   * @param {HTMLElement} list
   * @param {(threadId: string) => void} onOpen
   */
  constructor(list, onOpen) {
    this.#list = list;
    this.#onOpen = onOpen;
    list.addEventListener("keydown", (event) => this.#move(event));
  }

  has(threadId) {
    return this.#threads.has(threadId);
  }

  titleOf(threadId) {
    return this.#threads.get(threadId)?.title || UNTITLED;
  }

  /** Show a page of `thread_list` below what is there, or instead of it. */
  add(threads, { replace = false } = {}) {
    if (replace) this.#threads.clear();
    for (const thread of threads) {
      const moment = toDate(thread.updated_at ?? thread.created_at);
      this.#threads.set(thread.thread_id, { title: thread.title ?? "", moment });
    }
    this.draw();
  }

  /** Note that something happened in a thread: it moves to the top. */
  touch(threadId, { title, moment = new Date() } = {}) {
    const known = this.#threads.get(threadId);
    this.#threads.set(threadId, { title: known?.title || title || "", moment });
    this.draw();
  }

  rename(threadId, title) {
    const known = this.#threads.get(threadId);
    if (!known) return;
    known.title = title;
    this.draw();
  }

  remove(threadId) {
    if (this.#threads.delete(threadId)) this.draw();
  }

  /** Say which thread is shown, which have active runs, and in which an agent waits for an answer. */
  mark(current, busy, asking) {
    this.#current = current;
    this.#busy = busy;
    this.#asking = asking;
    this.draw();
  }

  draw() {
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.dataset.threadId : null;
    const newestFirst = [...this.#threads].sort(([, a], [, b]) => (b.moment ?? 0) - (a.moment ?? 0));
    const rows = newestFirst.map(([threadId, thread]) => element("li", {}, this.#row(threadId, thread)));
    if (rows.length === 0) rows.push(element("li.thread-none", {}, "What you talk about will be listed here."));
    this.#list.replaceChildren(...rows);
    if (focused) this.#list.querySelector(`[data-thread-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #row(threadId, { title, moment }) {
    const side = this.#sideOf(threadId, moment);
    const row = element("button.thread",
      { type: "button", testid: "thread", "data-thread-id": threadId, "aria-current": threadId === this.#current && "true" },
      element("span.thread-title", { title: title || UNTITLED }, title || UNTITLED), side);
    row.addEventListener("click", () => this.#onOpen(threadId));
    return row;
  }

  #sideOf(threadId, moment) {
    if (this.#asking.has(threadId)) {
      return element("span.thread-asks", { testid: "thread-asks", role: "img", "aria-label": "waits for your answer", title: "Waits for your answer" }, "?");
    }
    if (this.#busy.has(threadId)) return element("span.thread-dot", { role: "img", "aria-label": "running" });
    return element("span.thread-time", {}, briefTime(moment));
  }

  #move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const rows = [...this.#list.querySelectorAll(".thread")];
    const next = rows[rows.indexOf(document.activeElement) + step];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
}
