// Drives the status page in Chromium, as a person and as another page would. It is given what to test as JSON, and prints a line for each
// check: "ok <name>" or "failed <name>: <why>". It waits for conditions, never for times.
"use strict";

const { createRequire } = require("node:module");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const path = require("node:path");

const given = JSON.parse(process.argv[2]);
const modules = createRequire(path.join(given.modules, "node_modules", "x"));
const { chromium } = modules("playwright-core");
const axe = fs.readFileSync(modules.resolve("axe-core/axe.min.js"), "utf8");

const patience = 90_000; // until something is held to hang
const admin = `http://${given.admin}`;
const pageAt = `${admin}/portgate/`;
const busy = "127.0.0.2", calm = "127.0.0.3";

function must(condition, why) {
  if (!condition) throw new Error(why);
}

async function eventually(what, condition) {
  const until = Date.now() + patience;
  for (;;) {
    if (await condition()) return;
    if (Date.now() > until) throw new Error(`still waiting: ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 20); });
  }
}

// api asks the gateway without a browser.
function api(method, at, body, base = pageAt) {
  return new Promise((resolve, reject) => {
    const request = http.request(base + at, { method, agent: false, headers: { "Content-Type": "application/json", "Cache-Control": "must-revalidate" } }, (answer) => {
      let text = "";
      answer.on("data", (more) => { text += more; });
      answer.on("end", () => resolve({ status: answer.statusCode, text, json: () => JSON.parse(text) }));
    });
    request.on("error", reject);
    request.end(body);
  });
}

// connect opens a session from an address, which sends something again and again. word is what its upstream has said.
function connect(from, size = 100) {
  const [host, port] = given.gate.split(":");
  const socket = net.connect({ host, port, localAddress: from });
  const client = { socket, word: "", closed: false, got: 0 };
  socket.on("error", () => {});
  socket.on("data", (data) => {
    if (!client.word) client.word = String.fromCharCode(data[0]);
    client.got += data.length;
  });
  const sends = setInterval(() => socket.write(Buffer.alloc(size)), 50);
  socket.on("close", () => {
    client.closed = true;
    clearInterval(sends);
  });
  return client;
}

async function connected(from, size) {
  const client = connect(from, size);
  await eventually(`a session from ${from}`, () => client.word !== "" || client.closed);
  return client;
}

const hangUp = (...clients) => clients.forEach((client) => client.socket.destroy());

let failures = 0;

async function check(name, does) {
  try {
    await does();
    console.log(`ok ${name}`);
  } catch (error) {
    failures++;
    console.log(`failed ${name}: ${error.message.split("\n").slice(0, 12).join(" | ")}`);
  }
}

// --- The page as a person uses it

async function useIt(browser) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  const asked = new Set(), errors = [];
  context.on("request", (request) => asked.add(new URL(request.url()).origin));
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) errors.push(message.text()); });
  page.on("pageerror", (error) => errors.push(error.message));

  const text = (selector) => page.locator(selector).innerText();
  const says = (selector, words) => eventually(`${selector} says ${words}`, async () => words.test(await text(selector)));
  const shows = (selector) => page.locator(selector).evaluate((node) => node.scrollIntoView({ block: "center" }));
  const away = () => page.mouse.move(1, 1); // rows do not move under the mouse
  const shoot = (name, fullPage = true) => page.screenshot({ path: path.join(given.screenshots, `${name}.png`), fullPage });
  const row = (table, words) => page.locator(`#${table}-rows tr`, { hasText: words });

  const loud = [await connected(busy, 30_000), await connected(busy, 30_000)];
  const quiet = [await connected(calm), await connected(calm), await connected(calm)];

  await check("opens", async () => {
    const answer = await page.goto(pageAt); // as if it were typed
    must(answer.status() === 200, `status ${answer.status()}`);
    must((await text("h1")) === "Portgate", "another page");
  });
  await check("is small", async () => {
    await page.waitForLoadState("load");
    const size = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
      .filter((e) => e.entryType === "navigation" || /\.(css|js)$/.test(e.name)).reduce((sum, e) => sum + e.transferSize, 0));
    must(size > 20_000 && size < 100_000, `${size} bytes until the first paint`);
  });
  await check("is live", async () => {
    await says("#link", /^Live$/);
    await says("#now-sessions", /^5$/);
  });
  await check("follows traffic", async () => {
    await says("#now-up", /[1-9].*\/s/);
    const path = () => page.locator("#chart-list path.series").nth(0).getAttribute("d");
    await eventually("a line in a chart", async () => /L/.test((await path()) ?? ""));
    const before = await path(), more = await connected(calm);
    await says("#now-sessions", /^6$/);
    await eventually("another line", async () => (await path()) !== before);
    hangUp(more);
    await says("#now-sessions", /^5$/);
  });
  await check("reads a chart by keyboard", async () => {
    await page.locator("#chart-list figure svg[role=img]").first().focus();
    await page.keyboard.press("End");
    await says("#chart-list figure >> nth=0 >> .at", /^\d\d:\d\d:\d\d: up .*\/s, down .*\/s$/);
    const label = await page.locator("#chart-list svg[role=img]").first().getAttribute("aria-label");
    must(/Throughput, the last 15 minutes: up .* now, at most .*; down /.test(label), label);
    await page.keyboard.press("Escape");
  });
  await check("names the busiest client", async () => {
    await shows("#clients");
    await away();
    await eventually("the busiest client on top", async () => (await text("#clients-rows tr >> nth=0")).startsWith(busy));
    await eventually("all clients", async () => (await page.locator("#clients-rows tr").count()) === 2);
    await shoot("busiest");
  });
  await check("bans by keyboard", async () => {
    await page.getByRole("button", { name: `Ban ${busy}`, exact: true }).focus();
    await page.keyboard.press("Enter");
    await page.locator("#ban").waitFor();
    must((await text("#ban-title")) === `Ban ${busy}`, await text("#ban-title"));
    must((await page.evaluate(() => document.activeElement.name)) === "ttl", "the focus is not in the dialog");
    await page.keyboard.press("Tab");
    await page.keyboard.type("<b id=pwned>loud</b><img src=x onerror=alert(1)>");
    await shoot("ban", false);
    await page.keyboard.press("Enter");
    await eventually("the running sessions are cut", () => loud.every((client) => client.closed));
    await says("#said", /127\.0\.0\.2 is banned for 1 hour, by the list banned\. It has no sessions any more\./);
    await eventually("it is gone from the table", async () => (await row("clients", busy).count()) === 0);
    const again = await connected(busy);
    must(again.word === "", "it was let in again");
    hangUp(again);
    const { entries } = (await api("GET", "lists/banned")).json();
    must(entries.length === 1 && entries[0].prefix === `${busy}/32` && /^(1h0m0s|59m)/.test(entries[0].ttl), JSON.stringify(entries));
    await shoot("banned");
  });
  await check("shows texts as texts", async () => {
    await shows("#lists");
    await eventually("the reason of the ban", async () => (await text("#lists-all")).includes("<b id=pwned>loud</b><img src=x"));
    await shows("#events");
    await eventually("the event of the ban", async () => (await text("#events-rows")).includes("<b id=pwned>"));
    must((await page.locator("#pwned, main img").count()) === 0, "it has become an element");
  });
  await check("unbans", async () => {
    await shows("#lists");
    await page.getByRole("button", { name: `Unban ${busy}` }).click();
    await page.locator("#ask-yes").click();
    await says("#said", /127\.0\.0\.2 is no longer in the list banned/);
    await eventually("the list is empty", async () => (await text("#lists-all")).includes("Nobody is in it."));
    const again = await connected(busy);
    must(again.word !== "", "it is still kept out");
    hangUp(again);
  });
  const [a, b] = given.upstreams;
  const stateOf = async (name) => (await api("GET", `upstreams/${encodeURIComponent(name)}`)).json()[0].state;
  await check("drains", async () => {
    await shows("#upstreams");
    await page.getByRole("button", { name: `Drain ${a}`, exact: true }).click();
    await says("#said", /is drained/);
    await eventually("it is shown", async () => /drained/.test(await row("upstreams", a).innerText()));
    await eventually("its mapping has one upstream less", async () => /1 of 2 can take sessions/.test(await text("#mappings-rows")));
    must((await stateOf(a)) === "drain", await stateOf(a));
    for (let i = 0; i < 6; i++) {
      const client = await connected(calm);
      must(client.word === "b", `a new session went to ${client.word}`);
      hangUp(client);
    }
    must(quiet.every((client) => !client.closed), "it has closed sessions");
    await shoot("drained");
  });
  await check("undrains", async () => {
    await page.getByRole("button", { name: `Undrain ${a}`, exact: true }).click();
    await eventually("it is up", async () => (await stateOf(a)) === "up");
    await eventually("it is shown", async () => /up/.test(await row("upstreams", a).innerText()) && !/drained/.test(await row("upstreams", a).innerText()));
  });
  const more = [await connected("127.0.0.4"), await connected("127.0.0.4"), await connected("127.0.0.4")];
  const filter = async (client) => {
    await page.locator("#filter [name=client]").fill(client);
    await page.locator("#filter [type=submit]").click();
    await away();
  };
  await check("filters", async () => {
    await shows("#sessions");
    await filter("127.0.0.4");
    await says("#sessions-note", /^3 sessions$/);
    await eventually("its sessions alone", async () => (await page.locator("#sessions-rows tr").allInnerTexts()).every((line) => line.startsWith("127.0.0.4:")));
    await filter("somebody");
    await says("#sessions-note", /client: "somebody": expected an address or a prefix/);
    await page.locator("#filter [type=reset]").click();
    await says("#sessions-note", /^6 sessions$/);
    await shoot("sessions");
  });
  await check("closes one", async () => {
    await filter("127.0.0.4");
    await says("#sessions-note", /^3 sessions$/);
    await page.locator("#sessions-rows button").first().click();
    await eventually("one is closed", () => more.filter((client) => client.closed).length === 1);
    await says("#sessions-note", /^2 sessions$/);
    must(more.filter((client) => client.closed).length === 1, "more than one is closed");
  });
  await check("closes what is found", async () => {
    await says("#close-found", /^Close these 2$/);
    await page.locator("#close-found").click();
    await says("#ask-text", /client 127\.0\.0\.4/);
    await page.keyboard.press("Escape");
    must(more.filter((client) => client.closed).length === 1, "it has not waited for the answer");
    await page.locator("#close-found").click();
    await page.locator("#ask-yes").click();
    await says("#said", /^2 sessions closed\./);
    await eventually("all are closed", () => more.every((client) => client.closed));
    must(quiet.every((client) => !client.closed), "it has closed others, too");
    await page.locator("#filter [type=reset]").click();
  });
  await check("keeps the history over a reload", async () => {
    const known = async () => (await api("GET", "history")).json().bytes_up.filter((n) => n !== null).length;
    await eventually("a point of the history", async () => (await known()) >= 1);
    const before = await known();
    await page.evaluate(() => { document.getElementById("link").dataset.seen = "before"; });
    const { status, text: answer } = await api("POST", "/load", JSON.stringify(given.config), admin);
    must(status === 200, `${status} ${answer}`);
    await says("#process", /1 reload$/);
    await says("#link", /^Live$/);
    must((await known()) >= before, "the history has begun anew");
    must((await page.locator("#link").getAttribute("data-seen")) === "before", "the page was loaded again");
  });
  await check("shows events", async () => {
    await shows("#events");
    for (const name of ["ban", "unban", "upstream_set", "sessions_closed", "reload"]) {
      await eventually(`the event ${name}`, async () => (await page.locator("#events-rows strong", { hasText: new RegExp(`^${name}$`) }).count()) > 0);
    }
    const times = await page.locator("#events-rows time").evaluateAll((all) => all.map((one) => one.getAttribute("datetime")));
    must(times.join() === [...times].sort().reverse().join(), `they are not in order: ${times}`);
    const ids = await page.locator("#events-rows li").allInnerTexts();
    must(ids.filter((line) => /\bunban\b/.test(line)).length === 1, "an event is there twice");
  });
  await check("pauses while hidden", async () => {
    const hide = (hidden) => page.evaluate((is) => {
      Object.defineProperty(document, "hidden", { value: is, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
    await hide(true);
    await says("#link", /^Paused$/);
    await hide(false);
    await says("#link", /^Live$/);
  });
  const serious = async (where) => {
    await page.evaluate(axe);
    const { violations, passes } = await page.evaluate(() => axe.run());
    must(passes.length > 20, `${where}: axe has looked at next to nothing`);
    const bad = violations.filter((v) => ["serious", "critical"].includes(v.impact));
    for (const v of violations) if (!bad.includes(v)) console.log(`axe, ${where}: ${v.impact} ${v.id}: ${v.nodes[0].html}`);
    must(bad.length === 0, `${where}: ${bad.map((v) => `${v.id}: ${v.help}: ${v.nodes[0].html}`).join("; ")}`);
  };
  await api("PUT", "lists/banned/entries/192.0.2.0%2F24", '{"ttl":"1h","reason":"port scan"}');
  await check("is accessible", async () => {
    for (const id of ["lists", "limits", "mappings", "clients"]) {
      await shows(`#${id}`);
      await eventually(`rows of ${id}`, async () => (await page.locator(`#${id} tbody tr`).count()) > 0);
    }
    await serious("light");
    await page.locator("#clients-rows button").first().click();
    await serious("dialog");
    await page.keyboard.press("Escape");
    must((await page.evaluate(() => document.activeElement.textContent)) === "Ban", "the focus has not come back");
    const unnamed = await page.locator("button, input, select").evaluateAll((all) => all.filter((one) => !(one.textContent || one.labels?.length || one.getAttribute("aria-label"))).length);
    must(unnamed === 0, `${unnamed} fields without a name`);
  });
  await check("is dark", async () => {
    await page.emulateMedia({ colorScheme: "dark" });
    await eventually("a dark background", async () => (await page.evaluate(() => getComputedStyle(document.body).backgroundColor)) === "rgb(20, 23, 28)");
    await serious("dark");
    await shoot("dark");
    await page.emulateMedia({ colorScheme: "light" });
  });
  await check("moves little", async () => {
    const moves = () => page.evaluate(() => {
      const node = document.body.appendChild(document.createElement("p"));
      node.className = "fresh";
      const name = getComputedStyle(node).animationName;
      node.remove();
      return name;
    });
    must((await moves()) === "fresh", "nothing moves that could be kept from it");
    await page.emulateMedia({ reducedMotion: "reduce" });
    must((await moves()) === "none", "it moves");
  });
  await check("fits 360 pixels", async () => {
    await page.setViewportSize({ width: 360, height: 740 });
    for (const id of ["charts", "clients", "mappings", "upstreams", "sessions", "lists", "limits", "events"]) {
      await shows(`#${id}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      must(wide <= 360, `${id}: the page is ${wide} pixels wide`);
    }
    const boxes = await page.locator("#clients-rows button, #upstreams-rows button, #sessions-rows button").evaluateAll((all) => all.map((button) => button.getBoundingClientRect().toJSON()));
    must(boxes.length > 3, "there are no buttons");
    for (const box of boxes) must(box.left >= 0 && box.right <= 360 && box.height >= 24, `a button is at ${JSON.stringify(box)}`);
    await serious("360 pixels");
    await page.locator("#ban-any").click();
    const box = await page.locator("#ban").boundingBox();
    must(box.x >= 0 && box.x + box.width <= 360, `the dialog is at ${JSON.stringify(box)}`);
    await shoot("narrow-ban", false);
    await page.keyboard.press("Escape");
    await shoot("narrow");
  });
  await check("asks nobody else", () => must([...asked].join() === admin, [...asked].join()));
  await check("reports no error", () => {
    // While the gateway changes its admin endpoint for a reload, the browser reports the end of the stream.
    const others = errors.filter((message) => !/ERR_(INCOMPLETE_CHUNKED_ENCODING|CONNECTION_REFUSED|EMPTY_RESPONSE|CONNECTION_RESET)/.test(message));
    const refused = others.filter((message) => /status of 400/.test(message)); // the filter that was wrong on purpose
    must(refused.length <= 2 && others.length === refused.length, others.join("; "));
  });
  await context.close();
  hangUp(...quiet);
}

// --- The page on a site

async function useSites(browser) {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  const errors = [];
  page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
  await check("is read-only on a site", async () => {
    await page.goto(`http://${given.readOnly}/portgate`);
    await eventually("it is live", async () => (await page.locator("#link").innerText()) === "Live");
    await page.locator("#mode").waitFor();
    await page.locator("#upstreams").scrollIntoViewIfNeeded();
    await page.locator("#upstreams-rows tr").first().waitFor();
    for (const name of [/^Ban/, /^Drain/, /^Close/, /^Unban/]) {
      must((await page.getByRole("button", { name }).count()) === 0, `there is a button ${name}`);
    }
    must(errors.length === 0, errors.join("; "));
    await page.screenshot({ path: path.join(given.screenshots, "read-only.png"), fullPage: true });
  });
  await check("changes on a writable site", async () => {
    await page.goto(`http://${given.writable}/status/`);
    await page.locator("#upstreams").scrollIntoViewIfNeeded();
    for (const [button, state] of [["Drain", "drain"], ["Undrain", "up"]]) {
      await page.getByRole("button", { name: `${button} ${given.upstreams[1]}`, exact: true }).click();
      await eventually(`it is ${state}`, async () => (await api("GET", `upstreams/${encodeURIComponent(given.upstreams[1])}`)).json()[0].state === state);
    }
    must(errors.length === 0, errors.join("; "));
  });
  await context.close();
}

// --- Another page

// attack does in the browser what a hostile page could, and returns what has come of it.
async function attack(base) {
  const found = [];
  const entry = `${base}lists/banned/entries/127.0.0.9`, ban = JSON.stringify({ ttl: "1h" });
  const tries = [
    ["reads", `${base}sessions`, {}],
    ["reads with credentials", `${base}sessions`, { credentials: "include" }],
    ["reads the page", base, {}],
    ["bans", entry, { method: "PUT", body: ban, headers: { "Content-Type": "application/json" } }],
    ["bans as text", entry, { method: "PUT", body: ban }],
    ["closes", `${base}sessions?all=true`, { method: "DELETE" }],
    ["drains", `${base}upstreams/x`, { method: "PATCH", body: '{"state":"drain"}' }],
    ["posts text", entry, { method: "POST", body: ban, headers: { "Content-Type": "text/plain" } }],
    ["loads a config", new URL("/load", base).href, { method: "POST", body: "{}", headers: { "Content-Type": "text/plain" } }],
  ];
  for (const [name, url, options] of tries) {
    try {
      const answer = await fetch(url, options);
      if (answer.ok) found.push(`${name}: ${answer.status} ${(await answer.text()).slice(0, 80)}`);
    } catch { /* the browser has kept it from us */ }
  }
  for (const [method, url] of [["GET", `${base}sessions`], ["POST", entry], ["POST", `${base}sessions`], ["GET", `${base}events`]]) {
    try {
      const answer = await fetch(url, { method, mode: "no-cors", body: method === "POST" ? ban : undefined });
      if (answer.type !== "opaque" || (await answer.text()) !== "") found.push(`no-cors ${method}: it can be read`);
    } catch { /* refused */ }
  }
  await new Promise((resolve) => {
    const source = new EventSource(`${base}events?status=1s`);
    for (const name of ["message", "status", "open"]) source.addEventListener(name, () => { found.push(`EventSource: ${name}`); source.close(); resolve(); });
    source.addEventListener("error", () => { if (source.readyState === EventSource.CLOSED) resolve(); });
  });
  for (const [tag, from] of [["script", `${base}sessions`], ["script", `${base}page.js`], ["img", `${base}status`]]) {
    await new Promise((resolve) => {
      const node = document.createElement(tag);
      node.onload = () => { found.push(`${tag}: ${from} was loaded`); resolve(); };
      node.onerror = resolve;
      node.src = from;
      document.body.append(node);
    });
  }
  for (const method of ["POST", "GET"]) {
    await new Promise((resolve) => {
      const frame = document.createElement("iframe"), form = document.createElement("form"), field = document.createElement("input");
      frame.name = `form-${method}`;
      document.body.append(frame);
      Object.assign(form, { method, action: entry, target: frame.name, enctype: "text/plain" });
      Object.assign(field, { name: '{"ttl":"1h","reason":"', value: '"}' });
      form.append(field);
      document.body.append(form);
      frame.onload = () => { if (frame.dataset.sent) resolve(); };
      frame.dataset.sent = "yes";
      form.submit();
    });
  }
  await new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.name = "framed";
    frame.onload = resolve;
    frame.src = base;
    document.body.append(frame);
  });
  return found;
}

async function attacks(browser) {
  const port = given.evil.split(":")[1];
  const bases = [pageAt, `http://${given.writable}/status/`, `http://${given.readOnly}/portgate/`];
  const victim = await connected(calm);
  const before = (await api("GET", "lists/banned")).json().size;
  for (const [name, origin] of [["attacks from another site", `http://evil.example:${port}`], ["attacks from another port", `http://${given.evil}`]]) {
    await check(name, async () => {
      for (const base of bases) {
        const context = await browser.newContext(), page = await context.newPage();
        page.setDefaultTimeout(patience);
        await page.goto(`${origin}/`);
        must((await page.title()) === "evil", "the page of the attacker is not there");
        const found = await page.evaluate(attack, base);
        must(found.length === 0, `${base}: ${found.join("; ")}`);
        for (const frame of page.frames()) must((await frame.locator("#chart-list").count()) === 0, `${base} lets itself be framed`);
        await context.close();
      }
    });
  }
  await check("attacks by a rebound name", async () => {
    const context = await browser.newContext(), page = await context.newPage();
    page.setDefaultTimeout(patience);
    for (const base of bases) {
      const url = new URL(base);
      url.hostname = "rebound.example";
      const answer = await page.goto(url.href);
      must(answer.status() === 403, `${url.href}: ${answer.status()}`);
      const statuses = await page.evaluate(async (at) => {
        const all = [];
        for (const [path, method] of [["sessions", "GET"], ["events", "GET"], ["lists/banned/entries/127.0.0.9", "PUT"], ["sessions?all=true", "DELETE"]]) {
          all.push((await fetch(at + path, { method, headers: method === "GET" ? {} : { "Content-Type": "application/json" } })).status);
        }
        return all;
      }, url.href);
      must(statuses.every((status) => status === 403), `${url.href}: ${statuses}`);
    }
    await context.close();
  });
  await check("nothing has changed", async () => {
    const { entries, size } = (await api("GET", "lists/banned")).json();
    must(size === before && !entries.some((entry) => entry.prefix.startsWith("127.0.0.9")), JSON.stringify(entries));
    must(!victim.closed, "a session was closed");
    for (const upstream of (await api("GET", "upstreams")).json()) must(upstream.state === "up", `${upstream.name} is ${upstream.state}`);
    must((await api("GET", "status")).json().config.reloads.success === 1, "the config has changed");
  });
  hangUp(victim);
}

(async () => {
  const browser = await chromium.launch({
    executablePath: given.chromium.includes("/") ? given.chromium : `/usr/bin/${given.chromium}`, timeout: patience,
    args: ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP rebound.example 127.0.0.1"],
  });
  console.log(`Chromium ${browser.version()}`);
  await useIt(browser);
  await useSites(browser);
  await attacks(browser);
  await browser.close();
  process.exit(failures ? 1 : 0);
})().catch((error) => {
  console.log(`failed ${error.stack.split("\n").join(" | ")}`);
  process.exit(1);
});
