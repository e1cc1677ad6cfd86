// Sets the theme before anything is drawn, so it is a plain script in the head. "auto" follows the system.
"use strict";
(() => {
  const KEY = "dllama.theme";
  const ORDER = ["auto", "light", "dark"];
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function read() {
    try {
      const stored = localStorage.getItem(KEY);
      return ORDER.includes(stored) ? stored : "auto";
    } catch {
      return "auto"; // the browser keeps no data for this page
    }
  }

  function apply(choice) {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.documentElement.dataset.themeChoice = choice;
  }

  let current = read();
  apply(current);
  system.addEventListener("change", () => apply(current));

  window.dllamaTheme = {
    choice: () => current,
    next() {
      current = ORDER[(ORDER.indexOf(current) + 1) % ORDER.length];
      apply(current);
      try {
        localStorage.setItem(KEY, current);
      } catch {
        // it holds until the page is left
      }
      return current;
    },
  };
})();
