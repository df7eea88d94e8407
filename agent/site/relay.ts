import { CodedError, codeOf, messageOf } from "#common/adapters/coded-error.js";
import { decideRange, readableBlobs } from "#common/domain/readable.js";
import { deviceOf, MAX_PIECE_BYTES, subjects, type ViaRequest } from "#common/domain/subjects.js";
import type { Bus, BusMessage } from "#common/ports/bus.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import { type AssignedTask, BlobRangeReply, BlobRangeRequest, HeartbeatReply } from "#proto/shoal/v1/device_wire.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobCache } from "../cache.js";
import { fetchToCache } from "../fetch.js";
import { roundOf } from "../state.js";

export interface RelayOptions {
  /** Of the site. */
  readonly bus: Bus;
  readonly cache: BlobCache;
  readonly clock: Clock;
  readonly log: Log;
  /** Asks the control plane for a device of the site. */
  readonly via: (name: string, request: ViaRequest, data: Uint8Array) => Promise<Uint8Array>;
}

/** A member waits this long at most for bytes that are still on their way; below what it waits for an answer. */
const MOST_WAIT_MS = 8_000;
const LOOK_EVERY_MS = 20;
const RETRY_MS = 1_000;
/** A member that was silent so long is not nudged any more. */
const FORGET_MS = 600_000;

/**
 * Answers the members of a site as the control plane would. Heartbeats and requests to join are passed on as they are; a
 * blob that a member may read, by the tasks it was given last, crosses the wide area once and is served from here.
 */
export class SiteRelay {
  readonly #options: RelayOptions;
  readonly #members = new Map<string, { tasks: readonly AssignedTask[]; heardMs: number }>();
  readonly #fetches = new Map<string, Promise<void>>();
  #bytesDown = 0;

  constructor(options: RelayOptions) {
    this.#options = options;
  }

  /**
   * Answers until the signal aborts.
   * @param onRound told the key of every round that a member is given
   */
  serve(signal: AbortSignal, onRound: (round: string) => void): void {
    const { bus } = this.#options;
    const on = (subject: string, handle: (message: BusMessage) => Promise<Uint8Array>): void => {
      bus.subscribe(subject, { signal }, (message) => this.#answer(message, handle));
    };
    on(subjects.joinAll, ({ subject, data }) => this.#options.via(subject.split(".")[2] ?? "", "join", data));
    on(subjects.heartbeatAll, (message) => this.#heartbeat(deviceOf(message.subject) ?? "", message.data, onRound));
    on(subjects.blobAll, (message) => this.#blob(deviceOf(message.subject) ?? "", message.data, signal));
  }

  /** Makes the members' next heartbeats come sooner. */
  nudge(): void {
    const { bus, clock } = this.#options;
    const nowMs = clock.monotonicMs();
    for (const [name, { heardMs }] of this.#members) {
      if (nowMs - heardMs > FORGET_MS) this.#members.delete(name);
      else bus.publish(subjects.nudge(name), new Uint8Array(0));
    }
  }

  /** Bytes of blobs that crossed the wide area since the last call. */
  takeBytesDown(): number {
    const bytes = this.#bytesDown;
    this.#bytesDown = 0;
    return bytes;
  }

  /** Without an answer the member asks again by itself, as it does when the control plane is away. */
  async #answer(message: BusMessage, handle: (message: BusMessage) => Promise<Uint8Array>): Promise<void> {
    try {
      message.respond(await handle(message));
    } catch (error) {
      const { log } = this.#options;
      log.debug("a member's request has no answer", { subject: message.subject, error: messageOf(error) });
    }
  }

  async #heartbeat(name: string, data: Uint8Array, onRound: (round: string) => void): Promise<Uint8Array> {
    const { via, clock } = this.#options;
    const answer = await via(name, "heartbeat", data);
    const { refusal, tasks } = HeartbeatReply.decode(answer);
    if (refusal === undefined) this.#members.set(name, { tasks, heardMs: clock.monotonicMs() });
    else this.#members.delete(name);
    for (const task of tasks) onRound(roundOf(task));
    return answer;
  }

  async #blob(name: string, data: Uint8Array, signal: AbortSignal): Promise<Uint8Array> {
    const { via } = this.#options;
    const request = BlobRangeRequest.decode(data);
    const tasks = this.#members.get(name)?.tasks ?? [];
    const verdict = decideRange(request, tasks, MAX_PIECE_BYTES);
    // The control plane says why not, or knows of a task that this gateway does not know (yet).
    if (!readableBlobs(tasks).has(request.digest) || !verdict.ok) return via(name, "blob", data);
    const { blob, offset, length } = verdict;
    const bytes = await this.#range(name, blob, offset, length, signal);
    const answer =
      bytes === undefined
        ? { refusal: { reason: "BlobAbsent", message: "the blob is on its way to this site: try again" } }
        : { blob, data: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength) };
    return BlobRangeReply.encode(BlobRangeReply.fromPartial(answer)).finish();
  }

  async #range(
    name: string,
    blob: BlobRef,
    offset: number,
    length: number,
    signal: AbortSignal,
  ): Promise<Uint8Array | undefined> {
    const { cache, clock } = this.#options;
    const untilMs = clock.monotonicMs() + MOST_WAIT_MS;
    for (;;) {
      const bytes = await cache.getRange(blob.digest, offset, length);
      if (bytes !== undefined || signal.aborted || clock.monotonicMs() > untilMs) return bytes;
      this.#fetch(name, blob, signal);
      await clock.sleep(LOOK_EVERY_MS, signal);
    }
  }

  /** Brings the blob here once, whoever asks; under the name of the first who does. */
  #fetch(name: string, blob: BlobRef, signal: AbortSignal): void {
    const { cache, log, clock } = this.#options;
    if (this.#fetches.has(blob.digest) || cache.has(blob.digest)) return;
    const source = (digest: string, offset: number, length: number): Promise<Uint8Array> =>
      this.#piece(name, { digest, offset, length });
    const fetching = fetchToCache(blob, cache, source, signal)
      .catch(async (error: unknown) => {
        log.warn("a blob could not be fetched for the site", {
          digest: blob.digest,
          error: messageOf(error),
          code: codeOf(error),
        });
        await clock.sleep(RETRY_MS, signal);
      })
      .finally(() => this.#fetches.delete(blob.digest));
    this.#fetches.set(blob.digest, fetching);
  }

  async #piece(name: string, request: BlobRangeRequest): Promise<Uint8Array> {
    const answer = await this.#options.via(name, "blob", BlobRangeRequest.encode(request).finish());
    const { refusal, data } = BlobRangeReply.decode(answer);
    if (refusal !== undefined) throw new CodedError(refusal.reason, refusal.message);
    this.#bytesDown += data.length;
    return data;
  }
}
