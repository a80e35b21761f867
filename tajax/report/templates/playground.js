"use strict";
(() => {
  const place = document.getElementById("play");
  const data = JSON.parse(document.getElementById("play-data").textContent);
  const find = (id) => document.getElementById(id);
  const rows = data.measured.map((_, number) => place.querySelector(`[data-measured="${number}"]`));

  // Arrays of the machine's order, which is that of the page wherever browsers run.
  const read = (text, kind) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new kind(bytes.buffer);
  };

  // Which images are right at some coefficients: of the classes kept of each the first with the largest score, added
  // from θ₀ through the vectors in order, as `tajax.coded_scores.predictions` adds.
  const scored = ({ counts, labels, codes }) => {
    const many = read(counts, Uint16Array), truth = read(labels, Uint16Array), code = read(codes, Int16Array);
    const right = new Uint8Array(many.length);
    const at = (coefs) => {
      let next = 0, sum = 0;
      for (let image = 0; image < many.length; image++) {
        let best = -Infinity, first = -1;
        for (let one = 0; one < many[image]; one++) {
          let score = code[next++];
          for (let t = 0; t < coefs.length; t++) score += coefs[t] * code[next++];
          if (score > best) { best = score; first = one; }
        }
        sum += right[image] = Number(first === truth[image]);
      }
      return sum / many.length;
    };
    return { at, right };
  };
  const joined = (curve) => ({
    at: ([alpha]) => {
      let k = 0;
      while (k < data.grid.length - 2 && data.grid[k + 1] <= alpha) k++;
      const [x, y] = [data.grid, curve].map((values) => [values[k], values[k + 1]]);
      return y[0] + (y[1] - y[0]) * ((alpha - x[0]) / (x[1] - x[0]));
    },
  });
  const models = data.measured.map((one) => (one.curve ? joined(one.curve) : scored(one)));

  // As Python writes it: what lies between two goes to the even digit.
  const percent = (share) => {
    const value = 100 * share;
    return value % 1 === 0.25 ? (value - 0.05).toFixed(1) : value.toFixed(1);
  };
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const written = (coef) => coef.toFixed(2).replace("-", "\u2212").replace(/^\u2212(0\.00)$/, "$1");

  let coefs = data.start.slice();
  const sliders = rows.map((row) => row.querySelector("input"));
  const all = find("play-all");

  const paint = (canvas, right) => {
    if (canvas.width !== right.length) canvas.width = right.length;
    const brush = canvas.getContext("2d");
    brush.clearRect(0, 0, right.length, 1);
    brush.fillStyle = getComputedStyle(canvas).color;
    right.forEach((is, image) => { if (is) brush.fillRect(image, 0, 1, 1); });
  };
  const set = (slider, output, coef, text) => {
    slider.value = coef;
    slider.setAttribute("aria-valuetext", text);
    output.textContent = text;
  };
  const show = () => {
    const reached = [], ratios = [];
    data.measured.forEach((one, number) => {
      const now = models[number].at(coefs), row = rows[number];
      row.querySelector("strong").textContent = percent(now);
      if (models[number].right) {
        row.dataset.right = models[number].right.join("");
        paint(row.querySelector("canvas"), models[number].right);
      }
      if (one.control) { find("play-control").textContent = percent(now); return; }
      reached.push(now);
      if (one.single) {
        ratios.push(now / one.single);
        row.querySelector(".play-ratio").textContent = `${percent(now / one.single)} % of fine-tuned`;
      }
      if (sliders[number]) set(sliders[number], row.querySelector("output"), coefs[number], written(coefs[number]));
    });
    const same = coefs.every((coef) => coef === coefs[0]);
    set(all, find("play-all-value"), mean(coefs), same ? written(coefs[0]) : "mixed");
    find("play-mean").textContent = percent(mean(reached));
    find("play-normalized").textContent = ratios.length ? percent(mean(ratios)) : "\u2013";
    find("play-command").value = data.command + coefs.join(",");
  };

  // While one drags, numbers move once a frame; they are told, and stand in the address, when it has come to rest.
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; show(); });
  };
  const settle = () => {
    show();
    find("play-wrong").hidden = true;
    find("play-told").textContent = `Normalised ${find("play-normalized").textContent} %, accuracy ${find("play-mean").textContent} %`;
    try { history.replaceState(null, "", `#playground=${coefs.join(",")}`); } catch { /* a place without addresses */ }
  };
  const drag = (slider, change) => {
    slider.addEventListener("input", () => { change(Number(slider.value)); soon(); });
    slider.addEventListener("change", () => { change(Number(slider.value)); settle(); });
  };
  sliders.forEach((slider, number) => { if (slider) drag(slider, (coef) => { coefs[number] = coef; }); });
  drag(all, (coef) => coefs.fill(coef));
  for (const button of place.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", () => { coefs = data.presets[button.dataset.preset].slice(); settle(); });
  }
  for (const button of place.querySelectorAll("[data-forget]")) {
    button.addEventListener("click", () => { coefs[button.dataset.forget] = -data.forget[button.dataset.forget]; settle(); });
  }
  for (const button of place.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const field = find("play-command");
      if (button.dataset.copy === "address") settle();
      const text = button.dataset.copy === "address" ? location.href : field.value;
      try {
        await navigator.clipboard.writeText(text);
        find("play-told").textContent = "Copied.";
      } catch { // not allowed here: what is chosen can be copied by hand
        if (button.dataset.copy === "command") field.select();
        find("play-told").textContent = "Not copied: the browser does not allow it here.";
      }
    });
  }

  // The state of an address, such as a colleague sends: taken whole or not at all.
  const restore = () => {
    const found = /^#playground=(.*)$/.exec(location.hash);
    if (!found) return;
    const given = found[1].split(",").map((text) => (/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : NaN));
    const fits = given.length === coefs.length && given.every((coef) => coef >= data.low && coef <= data.high);
    const wrong = find("play-wrong");
    wrong.hidden = fits;
    wrong.textContent = fits ? "" : `The address asks for coefficients that there are not here: want ${coefs.length}, from ${data.low} to ${data.high}, with commas between.`;
    if (fits) coefs = given;
    show();
    find("playground").scrollIntoView();
  };
  addEventListener("hashchange", restore);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  find("theme").addEventListener("click", soon);

  place.hidden = false;
  show();
  restore();
})();
