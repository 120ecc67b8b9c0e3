{% include "sorting.js" %}
(() => {
  const data = JSON.parse(document.getElementById("class-data").textContent);
  const pageSize = data.page_size, few = data.few_images;
  const table = document.getElementById("classes-table"), body = table.tBodies[0];
  const filter = document.getElementById("filter"), found = document.getElementById("found");
  const back = document.getElementById("back"), on = document.getElementById("on");
  const percent = v => (100 * v).toFixed(1) + "\u00a0%";
  const all = data.rows.map((r, k) => ({
    name: data.names[k], group: r[0], train: r[1], test: r[2], correct: r[3], low: r[4], high: r[5],
    confidence: r[6], confused: r[7] < 0 ? "" : data.names[r[7]], times: r[8],
    text: (data.names[k] + " " + data.groups[r[0]]).toLowerCase(),
  }));
  /* A class with too few test images has no accuracy to rank by: it stays behind the others either way. */
  const unsure = r => r.test === 0 ? 2 : r.test < few ? 1 : 0;
  const share = r => r.test ? r.correct / r.test : 0;
  const keys = [null, r => r.group, r => r.train, r => r.test, share, r => r.low, r => r.confidence, r => r.times];
  let shown = all, page = 0, column = -1, direction = 1;

  function accuracy(r) {
    if (r.test === 0) return "no test image";
    return r.test < few ? `too few to tell (${r.correct} of ${r.test})` : percent(share(r));
  }
  function cell(row, kind, text, style) {
    const node = document.createElement(kind);
    if (style) node.className = style;
    node.textContent = text;
    row.append(node);
    return node;
  }
  function apart(name) {
    const node = document.createElement("bdi");
    node.textContent = name;
    return node;
  }
  function build(r) {
    const row = document.createElement("tr");
    const name = cell(row, "th", "");
    name.scope = "row";
    name.append(apart(r.name));
    const group = cell(row, "td", "");
    const dot = document.createElement("span");
    dot.className = "key " + data.groups[r.group];
    group.append(dot, data.groups[r.group]);
    cell(row, "td", r.train, "n");
    cell(row, "td", r.test, "n");
    cell(row, "td", accuracy(r), unsure(r) ? "n soft" : "n");
    cell(row, "td", r.test ? `${(100 * r.low).toFixed(1)} \u2013 ${percent(r.high)}` : "\u2013", "n");
    cell(row, "td", r.confidence === null ? "\u2013" : percent(r.confidence), "n");
    const taken = cell(row, "td", r.times ? ` (${r.times} of ${r.test})` : "\u2013");
    if (r.times) taken.prepend(apart(r.confused));
    return row;
  }
  function show() {
    const last = Math.max(0, Math.ceil(shown.length / pageSize) - 1);
    page = Math.min(Math.max(page, 0), last);
    body.replaceChildren(...shown.slice(page * pageSize, (page + 1) * pageSize).map(build));
    found.textContent = `${shown.length} of ${all.length} classes` + (last ? `, page ${page + 1} of ${last + 1}` : "");
    back.hidden = on.hidden = last === 0;
    back.disabled = page === 0;
    on.disabled = page === last;
  }
  function update() {
    const want = filter.value.trim().toLowerCase();
    shown = all.filter(r => r.text.includes(want));
    if (column >= 0) {
      const key = keys[column];
      shown.sort((a, b) => {
        if (key === null) return direction * collator.compare(a.name, b.name);
        const tier = column < 4 ? 0 : unsure(a) - unsure(b);
        return tier || direction * (key(a) - key(b));
      });
    }
    page = 0;
    show();
  }
  sorting(table, (k, way) => { column = k; direction = way; update(); });
  filter.addEventListener("input", update);
  back.addEventListener("click", () => { page -= 1; show(); });
  on.addEventListener("click", () => { page += 1; show(); });
  document.getElementById("tools").hidden = false;
  document.getElementById("without-script").hidden = true;
  show();
})();
