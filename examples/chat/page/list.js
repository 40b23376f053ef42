/**
 * A list in which only visible items have elements, for any number of items of any height.
 *
 * Heights are estimated until items become visible, and then measured. The item at the upper edge stays in place when
 * earlier items are added, change, or are higher than estimated. At its end the list follows new items.
 */

import { h } from "./dom.js";

const GUESS = 64;
const BEYOND = 800; // Items within this many pixels above and below the screen have elements, too.
const NEAR_THE_END = 60;

export class VirtualList {
  #scroller;
  #render;
  #space = h("div", { className: "list-space" });
  #window = h("ol", { className: "list-window", role: "list" });
  #items = [];
  #index = new Map();
  #offsets = new Float64Array(1);
  #heights = new Map();
  #nodes = new Map();
  #keys = new WeakMap();
  #isAtEnd = true;
  #width = 0;
  #resized = new ResizeObserver((entries) => this.#measured(entries));

  /** `items` have a `key`. `isSame` compares two of them. `scrolled` is called after each movement. */
  constructor(scroller, { render, scrolled }) {
    this.#scroller = scroller;
    this.#render = render;
    this.#space.append(this.#window);
    scroller.append(this.#space);
    scroller.addEventListener(
      "scroll",
      () => {
        this.#isAtEnd = this.#toEnd < NEAR_THE_END;
        this.#draw();
        scrolled();
      },
      { passive: true },
    );
    this.#resized.observe(scroller);
  }

  get isAtEnd() {
    return this.#isAtEnd;
  }

  /** The number of pixels above the screen. */
  get above() {
    return this.#scroller.scrollTop;
  }

  node(key) {
    return this.#nodes.get(key)?.node;
  }

  set(items) {
    const anchor = this.#anchor();
    this.#items = items;
    this.#index = new Map(items.map((item, at) => [item.key, at]));
    for (const key of this.#heights.keys()) if (!this.#index.has(key)) this.#heights.delete(key);
    this.#lay();
    this.#restore(anchor);
    this.#draw(anchor);
  }

  /** Forget all items, for another room. */
  clear() {
    this.#isAtEnd = true;
    this.#heights.clear();
    this.set([]);
  }

  toEnd() {
    this.#isAtEnd = true;
    this.#restore({ isAtEnd: true });
    this.#draw();
  }

  /** Scroll an item to the middle of the screen, or only as far as needed. */
  show(key, { nearest = false } = {}) {
    // Estimated heights are measured on the way, which moves the target.
    for (let attempt = 0; attempt < 5; attempt++) {
      const at = this.#index.get(key);
      if (at === undefined) return;
      const { clientHeight, scrollTop } = this.#scroller;
      const [top, bottom] = [this.#offsets[at], this.#offsets[at + 1]];
      if (nearest && top >= scrollTop && bottom <= scrollTop + clientHeight) break;
      const middle = top - Math.max(0, (clientHeight - (bottom - top)) / 2);
      const goal = !nearest ? middle : top < scrollTop ? top - 8 : bottom - clientHeight + 8;
      this.#scroller.scrollTop = goal;
      this.#isAtEnd = this.#toEnd < NEAR_THE_END;
      this.#draw();
    }
    return this.node(key);
  }

  get #toEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  /** The anchor that stays in place: the end, or the first visible item that will still be there. */
  #anchor() {
    if (this.#isAtEnd) return { isAtEnd: true };
    const top = this.#scroller.scrollTop;
    const keys = [];
    for (let at = this.#find(top); at < this.#items.length && keys.length < 20; at++) {
      const { key } = this.#items[at];
      // An item with an estimated height would move the items below it when it is measured.
      if (this.#heights.has(key)) keys.push({ key, below: this.#offsets[at] - top });
    }
    return { keys };
  }

  #restore({ isAtEnd, keys }) {
    if (isAtEnd) {
      this.#scroller.scrollTop = this.#scroller.scrollHeight;
      return;
    }
    const found = keys.find(({ key }) => this.#index.has(key) && !key.startsWith("-"));
    if (found) this.#scroller.scrollTop = this.#offsets[this.#index.get(found.key)] - found.below;
  }

  #lay() {
    const offsets = new Float64Array(this.#items.length + 1);
    for (let at = 0; at < this.#items.length; at++) {
      const { key, guess } = this.#items[at];
      offsets[at + 1] = offsets[at] + (this.#heights.get(key) ?? guess ?? GUESS);
    }
    this.#offsets = offsets;
    this.#space.style.height = `${offsets[this.#items.length]}px`;
  }

  /** The index of the item at this height. */
  #find(top) {
    let from = 0;
    let to = this.#items.length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#offsets[middle + 1] <= top) from = middle + 1;
      else to = middle;
    }
    return Math.min(from, Math.max(0, this.#items.length - 1));
  }

  #draw(anchor = this.#anchor()) {
    for (let attempt = 0; attempt < 4; attempt++) {
      const { scrollTop, clientHeight } = this.#scroller;
      const first = this.#find(scrollTop - BEYOND);
      const last = Math.min(this.#items.length, this.#find(scrollTop + clientHeight + BEYOND) + 1);
      this.#place(first, last);
      if (!this.#measure(first, last)) return;
      this.#lay();
      this.#restore(anchor);
    }
  }

  #place(first, last) {
    const focused = document.activeElement;
    const kept = new Set();
    let next = this.#window.firstChild;
    for (let at = first; at < last; at++) {
      const item = this.#items[at];
      kept.add(item.key);
      let known = this.#nodes.get(item.key);
      if (!known || known.item.mark !== item.mark || known.item.message !== item.message) {
        const node = this.#render(item);
        this.#keys.set(node, item.key);
        this.#resized.observe(node);
        if (known) {
          const hadFocus = known.node === focused;
          if (next === known.node) next = node;
          known.node.replaceWith(node);
          this.#resized.unobserve(known.node);
          if (hadFocus) node.focus({ preventScroll: true });
        }
        known = { node };
      }
      known.item = item;
      this.#nodes.set(item.key, known);
      known.node.setAttribute("aria-posinset", at + 1);
      known.node.setAttribute("aria-setsize", this.#items.length);
      if (known.node === next) next = next.nextSibling;
      else this.#window.insertBefore(known.node, next);
    }
    for (const [key, { node }] of this.#nodes) {
      if (kept.has(key)) continue;
      this.#resized.unobserve(node);
      node.remove();
      this.#nodes.delete(key);
    }
    // A short list is at the lower edge, above the field to write in.
    const free = Math.max(0, this.#scroller.clientHeight - this.#offsets[this.#items.length]);
    this.#window.style.transform = `translateY(${free + (this.#offsets[first] ?? 0)}px)`;
  }

  /** Measure visible items. Returns whether a height differs from its last value or estimate. */
  #measure(first, last) {
    let hasChanged = false;
    for (let at = first; at < last; at++) {
      const { key } = this.#items[at];
      const height = this.#nodes.get(key).node.getBoundingClientRect().height;
      if (Math.abs(height - (this.#offsets[at + 1] - this.#offsets[at])) > 0.5) hasChanged = true;
      this.#heights.set(key, height);
    }
    return hasChanged;
  }

  #measured(entries) {
    for (const { target, contentRect } of entries) {
      if (target !== this.#scroller) continue;
      if (contentRect.width !== this.#width) this.#heights.clear();
      this.#width = contentRect.width;
    }
    if (this.#isAtEnd) this.#restore({ isAtEnd: true });
    this.#draw();
  }
}
