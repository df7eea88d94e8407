import { ErrorCode, type Msg, type NatsConnection } from "nats";
import type { Bus, BusMessage } from "../../ports/bus.js";
import type { Log } from "../../ports/log.js";
import { CodedError, codeOf, messageOf } from "../coded-error.js";

/** Bus on NATS's own messages. Subscriptions come back by themselves after a reconnect. */
export class NatsBus implements Bus {
  constructor(
    private readonly nc: NatsConnection,
    private readonly log: Log,
  ) {}

  publish(subject: string, data: Uint8Array): void {
    this.nc.publish(subject, data);
  }

  subscribe(
    subject: string,
    options: { queue?: string; signal: AbortSignal },
    handler: (message: BusMessage) => Promise<void> | void,
  ): void {
    if (options.signal.aborted) return;
    const subscription = this.nc.subscribe(subject, {
      ...(options.queue === undefined ? {} : { queue: options.queue }),
      callback: (error, message) => {
        if (error !== null) this.log.error("a subscription was refused", { subject, error: messageOf(error) });
        else void this.handle(handler, message);
      },
    });
    options.signal.addEventListener("abort", () => subscription.unsubscribe(), { once: true });
  }

  async request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    try {
      return (await this.nc.request(subject, data, { timeout: timeoutMs })).data;
    } catch (error) {
      throw requestError(error, subject, timeoutMs);
    }
  }

  private async handle(handler: (message: BusMessage) => Promise<void> | void, message: Msg): Promise<void> {
    try {
      await handler({
        subject: message.subject,
        data: message.data,
        respond: (data) => void message.respond(data),
      });
    } catch (error) {
      this.log.error("a bus handler failed", { subject: message.subject, error: messageOf(error) });
    }
  }
}

/** A failed request in the words of the Bus port. */
export function requestError(error: unknown, subject: string, timeoutMs: number): Error {
  const code = codeOf(error);
  if (code === ErrorCode.NoResponders.toString())
    return new CodedError("NO_RESPONDERS", `nobody answers on ${subject}`);
  if (code === ErrorCode.Timeout.toString())
    return new CodedError("TIMEOUT", `no answer on ${subject} in ${timeoutMs} ms`);
  return error instanceof Error ? error : new Error(String(error));
}
