import type { TestFn } from "ava";
import type { Bus } from "#common/ports/bus.js";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (data: Uint8Array): string => new TextDecoder().decode(data);

/** What every Bus does. `flush` resolves when what was sent and subscribed has reached everybody. */
export function busConformance(
  test: TestFn,
  label: string,
  open: () => { bus: Bus; flush: () => Promise<void> },
): void {
  const title = (what: string): string => `${label}: ${what}`;

  test(title("messages reach matching subscriptions only, in order"), async (t) => {
    const { bus, flush } = open();
    const stop = new AbortController();
    const seen: Record<string, string[]> = { "m.a.*": [], "m.>": [], "m.a.b": [], "m.b.*": [] };
    for (const [subject, list] of Object.entries(seen))
      bus.subscribe(
        subject,
        { signal: stop.signal },
        (message) => void list.push(`${message.subject}=${text(message.data)}`),
      );
    await flush();
    for (const value of ["1", "2"]) bus.publish("m.a.b", bytes(value));
    bus.publish("m.a.b.c", bytes("3"));
    await flush();
    t.deepEqual(seen, {
      "m.a.*": ["m.a.b=1", "m.a.b=2"],
      "m.>": ["m.a.b=1", "m.a.b=2", "m.a.b.c=3"],
      "m.a.b": ["m.a.b=1", "m.a.b=2"],
      "m.b.*": [],
    });
    stop.abort();
    bus.publish("m.a.b", bytes("late"));
    await flush();
    t.is(seen["m.a.b"]?.length, 2);
  });

  test(title("members of a queue group share the messages"), async (t) => {
    const { bus, flush } = open();
    const stop = new AbortController();
    const seen: string[] = [];
    for (const queue of ["q1", "q1", "q1", "q2"])
      bus.subscribe("g.x", { queue, signal: stop.signal }, () => void seen.push(queue));
    await flush();
    for (let index = 0; index < 10; index += 1) bus.publish("g.x", bytes("m"));
    await flush();
    t.is(seen.filter((queue) => queue === "q1").length, 10);
    t.is(seen.filter((queue) => queue === "q2").length, 10);
    stop.abort();
  });

  test(title("a request is answered"), async (t) => {
    const { bus, flush } = open();
    const stop = new AbortController();
    bus.subscribe("r.*", { signal: stop.signal }, async (message) => {
      await Promise.resolve();
      message.respond(bytes(`${message.subject}:${text(message.data)}`));
    });
    await flush();
    const answers = await Promise.all(["a", "b"].map((name) => bus.request(`r.${name}`, bytes(name), 30_000)));
    t.deepEqual(answers.map(text), ["r.a:a", "r.b:b"]);
    stop.abort();
  });

  test(title("a request nobody hears fails at once, one nobody answers in time"), async (t) => {
    const { bus, flush } = open();
    const stop = new AbortController();
    bus.subscribe("silent", { signal: stop.signal }, () => undefined);
    await flush();
    const startMs = performance.now();
    await t.throwsAsync(bus.request("nobody", bytes(""), 5000), { code: "NO_RESPONDERS" });
    t.true(performance.now() - startMs < 4500);
    await t.throwsAsync(bus.request("silent", bytes(""), 100), { code: "TIMEOUT" });
    stop.abort();
  });

  test(title("a handler that throws does not end its subscription"), async (t) => {
    const { bus, flush } = open();
    const stop = new AbortController();
    let calls = 0;
    bus.subscribe("throws", { signal: stop.signal }, () => {
      calls += 1;
      throw new Error("the handler's own fault");
    });
    await flush();
    for (let index = 0; index < 3; index += 1) bus.publish("throws", bytes("m"));
    await flush();
    t.is(calls, 3);
    stop.abort();
  });
}
