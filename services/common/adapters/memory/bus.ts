import type { Bus, BusMessage } from "../../ports/bus.js";
import type { Clock } from "../../ports/clock.js";
import type { Log } from "../../ports/log.js";
import { CodedError, messageOf } from "../coded-error.js";
import { SystemClock } from "./clock.js";
import { MemoryLog } from "./log.js";

interface Subscription {
  subject: string;
  queue: string | undefined;
  handler: (message: BusMessage) => Promise<void> | void;
}

/** The reference Bus: delivers in a later microtask, in order; queue groups take turns. */
export class MemoryBus implements Bus {
  private readonly subscriptions = new Set<Subscription>();
  private turn = 0;

  constructor(
    private readonly log: Log = new MemoryLog(),
    private readonly clock: Clock = new SystemClock(),
  ) {}

  publish(subject: string, data: Uint8Array): void {
    this.deliver(subject, data, () => undefined);
  }

  subscribe(
    subject: string,
    options: { queue?: string; signal: AbortSignal },
    handler: (message: BusMessage) => Promise<void> | void,
  ): void {
    if (options.signal.aborted) return;
    const subscription = { subject, queue: options.queue, handler };
    this.subscriptions.add(subscription);
    options.signal.addEventListener("abort", () => this.subscriptions.delete(subscription), { once: true });
  }

  async request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    const answered = new AbortController();
    const answer = new Promise<Uint8Array>((resolve) => {
      const receivers = this.deliver(subject, data, (reply) => {
        resolve(Uint8Array.from(reply));
        answered.abort();
      });
      if (receivers === 0) throw new CodedError("NO_RESPONDERS", `nobody answers on ${subject}`);
    });
    const timeout = this.clock.sleep(timeoutMs, answered.signal).then(() => {
      if (!answered.signal.aborted) throw new CodedError("TIMEOUT", `no answer on ${subject} in ${timeoutMs} ms`);
      return answer;
    });
    try {
      return await Promise.race([answer, timeout]);
    } finally {
      answered.abort();
      timeout.catch(() => undefined);
    }
  }

  private deliver(subject: string, data: Uint8Array, respond: (data: Uint8Array) => void): number {
    const receivers = this.choose(subject);
    for (const { handler } of receivers) {
      const message = { subject, data: Uint8Array.from(data), respond };
      queueMicrotask(() => {
        void this.handle(handler, message);
      });
    }
    return receivers.length;
  }

  private choose(subject: string): Subscription[] {
    const matching = [...this.subscriptions].filter((subscription) => matches(subscription.subject, subject));
    const groups = new Map<string, Subscription[]>();
    const chosen = matching.filter(({ queue }) => queue === undefined);
    for (const subscription of matching) {
      if (subscription.queue === undefined) continue;
      const group = `${subscription.queue} ${subscription.subject}`;
      groups.set(group, [...(groups.get(group) ?? []), subscription]);
    }
    this.turn += 1;
    for (const members of groups.values()) {
      const member = members[this.turn % members.length];
      if (member !== undefined) chosen.push(member);
    }
    return chosen;
  }

  private async handle(handler: Subscription["handler"], message: BusMessage): Promise<void> {
    try {
      await handler(message);
    } catch (error) {
      this.log.error("a bus handler failed", { subject: message.subject, error: messageOf(error) });
    }
  }
}

function matches(pattern: string, subject: string): boolean {
  const wanted = pattern.split(".");
  const tokens = subject.split(".");
  for (const [index, token] of wanted.entries()) {
    if (token === ">") return tokens.length > index;
    if (tokens[index] === undefined || (token !== "*" && token !== tokens[index])) return false;
  }
  return wanted.length === tokens.length;
}
