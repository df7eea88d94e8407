import { CodedError, codeOf } from "#common/adapters/coded-error.js";
import type { Log } from "#common/ports/log.js";
import type { UpdateUplink } from "#common/ports/update-log.js";
import { writeAtomically, type Disk } from "../disk.js";
import { isOtherLife } from "../round-key.js";
import { CommittedRounds } from "./committed.js";
import {
  decodeAcks,
  decodeEntry,
  encodeAck,
  encodeCommitSent,
  encodeEntry,
  type Acks,
  type SpoolEntry,
  type UpdateDraft,
} from "./draft.js";
import { decodeInnerState, encodeInnerState, type InnerState } from "./inner-state.js";
import { checksumOfPayload, openPayload } from "./payload.js";
import { DEFAULT_OUTBOX_BYTES, planRoom, type Dispensable, type RoomLimits } from "./room.js";
import { sendWindowed } from "./window.js";

const ENTRY = "entry.json";
const PAYLOAD = "payload";
const INNER = "inner";
const ACKS = "acks";
const OTHER_BYTES = "its payload is not what was spooled";

export interface OutboxOptions {
  readonly disk: Disk;
  /** Folder of its own. */
  readonly folder: string;
  readonly log: Log;
  /** Defaults for what is not given. */
  readonly limits?: Partial<RoomLimits>;
}

/** What waits in an outbox. */
export interface OutboxUsage {
  readonly updates: number;
  /** Of everything in it. */
  readonly bytes: number;
  /** When the oldest update was spooled, Unix milliseconds; 0 without one. */
  readonly oldestAtMs: number;
}

/** How an upload tells what it does. `commitSending` may be answered by an abort of the signal. */
export interface UploadHooks {
  readonly signal: AbortSignal;
  /** Milliseconds that never go backwards. */
  readonly monotonicMs: () => number;
  chunkSent(bytes: number): void;
  commitSending(): void;
}

/**
 * Updates on disk until the log has them, the inner state that goes with them, and markers of the rounds committed.
 *
 * Layout: `spool/<round>/{entry.json,payload,inner,acks}`, `inner/<job>`, `committed/<round>`, where rounds and jobs are
 * named by their keys, so that what a deleted job left does not count for one of its name. A crash at any point leaves
 * either no update (it is trained again from the old inner state) or a whole one (it is uploaded; messages keep their
 * ids). After the commit's acknowledgement: marker, inner state, removal; whatever a crash leaves of these three is done
 * at the next opening.
 */
export class Outbox {
  readonly #disk: Disk;
  readonly #folder: string;
  readonly #log: Log;
  readonly #committed: CommittedRounds;
  readonly #limits: RoomLimits;

  private constructor({ disk, folder, log, limits = {} }: OutboxOptions, committed: CommittedRounds) {
    this.#disk = disk;
    this.#folder = folder;
    this.#log = log;
    this.#committed = committed;
    this.#limits = { maxBytes: limits.maxBytes ?? DEFAULT_OUTBOX_BYTES, leastFreeBytes: limits.leastFreeBytes };
  }

  /** Opens the folder, sets damaged entries aside and finishes what a crash interrupted. */
  static async open(options: OutboxOptions): Promise<Outbox> {
    const { disk, folder } = options;
    for (const part of ["spool", "inner", "committed", "damaged"]) await disk.makeFolder(`${folder}/${part}`);
    await disk.sync(folder);
    const outbox = new Outbox(options, await CommittedRounds.open(disk, `${folder}/committed`));
    await outbox.#recover();
    return outbox;
  }

  /** Rounds with a durable committed marker. */
  get committed(): string[] {
    return this.#committed.rounds;
  }

  /** Rounds committed in the UTC day of this time. */
  committedOn(nowMs: number): number {
    return this.#committed.countOn(nowMs);
  }

  /** Updates that wait for upload, oldest round name first. */
  async spooled(): Promise<{ round: string; commitSent: boolean }[]> {
    const rounds = (await this.#disk.list(`${this.#folder}/spool`)).filter((name) => !name.startsWith("."));
    const spooled: { round: string; commitSent: boolean }[] = [];
    for (const round of rounds) {
      const { commitSent } = decodeAcks(await this.#disk.read(`${this.#entry(round)}/${ACKS}`));
      spooled.push({ round, commitSent });
    }
    return spooled;
  }

  /** How full it is. */
  async usage(): Promise<OutboxUsage> {
    const { updates, usedBytes, oldestAtMs } = await this.#survey();
    return { updates, bytes: usedBytes, oldestAtMs };
  }

  /**
   * Makes sure that so many bytes more fit, giving up what is of least use. Throws code "OutboxFull" or "DiskLow" with the remedy;
   * nothing is given up then.
   */
  async makeRoom(needBytes: number, job: string, nowMs: number): Promise<void> {
    const { usedBytes, dispensable } = await this.#survey();
    const space = await this.#disk.space(this.#folder);
    const room = planRoom(needBytes, job, { usedBytes, ...space, dispensable, nowMs }, this.#limits);
    if (!room.fits) throw new CodedError(room.code, room.message);
    for (const { path, kind, sizeBytes } of room.remove) {
      await this.#disk.remove(path);
      this.#log.warn("given up for want of space", { kind, path, sizeBytes });
    }
  }

  /** Sizes of all that lies here. */
  async #survey(): Promise<{ updates: number; usedBytes: number; oldestAtMs: number; dispensable: Dispensable[] }> {
    const spool = `${this.#folder}/spool`;
    const rounds = await this.#disk.list(spool);
    const updates = rounds.filter((name) => !name.startsWith("."));
    const files = await Promise.all(rounds.map((name) => this.#sizeOf(`${spool}/${name}`, true)));
    const spooledAt = await Promise.all(updates.map((name) => this.#disk.stat(`${spool}/${name}/${ENTRY}`)));
    const dispensable: Dispensable[] = [];
    for (const kind of ["inner", "damaged"] as const) {
      for (const name of await this.#disk.list(`${this.#folder}/${kind}`)) {
        const path = `${this.#folder}/${kind}/${name}`;
        // Of what is set aside only updates are folders.
        const { sizeBytes, usedMs } = await this.#sizeOf(path, kind === "damaged" && name.startsWith("spool-"));
        dispensable.push({ path, kind, job: kind === "inner" ? name : "", sizeBytes, usedMs });
      }
    }
    const usedBytes = [...files, ...dispensable].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const times = spooledAt.flatMap((found) => found?.modifiedMs ?? []);
    const oldestAtMs = times.length === 0 ? 0 : Math.round(Math.min(...times));
    return { updates: updates.length, usedBytes, oldestAtMs, dispensable };
  }

  async #sizeOf(path: string, isFolder: boolean): Promise<{ sizeBytes: number; usedMs: number }> {
    const names = isFolder ? (await this.#disk.list(path)).map((name) => `${path}/${name}`) : [path];
    let sizeBytes = 0;
    let usedMs = 0;
    for (const name of names) {
      const found = await this.#disk.stat(name);
      sizeBytes += found?.sizeBytes ?? 0;
      usedMs = Math.max(usedMs, found?.modifiedMs ?? 0);
    }
    return { sizeBytes, usedMs };
  }

  /** What the job left after its last committed round; undefined if nothing, or if it is damaged. */
  async innerState(job: string): Promise<InnerState | undefined> {
    const bytes = await this.#disk.read(`${this.#folder}/inner/${job}`);
    if (bytes === undefined) return undefined;
    const state = decodeInnerState(bytes);
    if (state === undefined) {
      this.#log.error("the kept optimizer state is damaged; the job goes on from a fresh one", { job });
      await this.#setAside(`${this.#folder}/inner/${job}`, `inner-${job}`);
    }
    return state;
  }

  /**
   * Makes an update durable. Throws code "SpoolFull" if it does not fit on the disk; nothing of it remains then.
   *
   * @param inner promoted when the commit is acknowledged; undefined keeps what the job has
   */
  async put(draft: UpdateDraft, inner: InnerState | undefined, nonce: string): Promise<void> {
    const { job, key: round, manifest } = draft;
    const temporary = `${this.#folder}/spool/.${round}`;
    const entry: SpoolEntry = {
      job,
      key: round,
      manifest,
      chunkBytes: draft.chunks.map((chunk) => chunk.length),
      checksum: checksumOfPayload(draft.chunks),
      nonce,
    };
    try {
      await this.#disk.remove(temporary);
      await this.#disk.makeFolder(temporary);
      await this.#writeFile(temporary, PAYLOAD, draft.chunks);
      if (inner !== undefined) await this.#writeFile(temporary, INNER, encodeInnerState(inner));
      await this.#disk.write(`${temporary}/${ACKS}`, []);
      await this.#writeFile(temporary, ENTRY, [encodeEntry(entry)]);
      await this.#disk.sync(temporary);
      await this.discard(round);
      await this.#disk.rename(temporary, this.#entry(round));
      await this.#disk.sync(`${this.#folder}/spool`);
    } catch (error) {
      await this.#disk.remove(temporary).catch(() => undefined);
      throw asSpoolError(error, this.#folder);
    }
  }

  async #writeFile(folder: string, name: string, parts: readonly Uint8Array[]): Promise<void> {
    await this.#disk.write(`${folder}/${name}`, parts);
    await this.#disk.sync(`${folder}/${name}`);
  }

  /**
   * Sends what the log has not acknowledged, then the commit, then tidies up. Returns false if the signal aborted it
   * before the commit was sent. The payload is held against its checksum as it is sent, and nothing else is committed. Throws code
   * "SPOOL_CORRUPT" if the entry had to be set aside; the uplink's failures
   * pass through, and the same call goes on where it stopped.
   */
  async upload(round: string, uplink: UpdateUplink, nowMs: () => number, hooks: UploadHooks): Promise<boolean> {
    const entry = await this.#loadEntry(round);
    const acksPath = `${this.#entry(round)}/${ACKS}`;
    const { chunkSeqs: known, commitSent } = await this.#openAcks(round);
    const payload = openPayload(this.#disk, `${this.#entry(round)}/${PAYLOAD}`, entry);
    for (const _ of known) (await payload.next()).release();
    // Chunks are sent in their order, and so lie in the log, which is read more quickly then.
    const send = async (i: number): Promise<number> => {
      const { bytes, release } = await payload.next();
      const { seq } = await uplink.appendChunk(entry.manifest.round, `${entry.nonce}-${i}`, bytes);
      // After a failure they may still be on their way.
      release();
      if (!hooks.signal.aborted) hooks.chunkSent(bytes.length);
      return seq;
    };
    const note = async (seqs: readonly number[], more: readonly Uint8Array[] = []): Promise<void> => {
      await this.#disk.append(acksPath, Buffer.concat([...seqs.map(encodeAck), ...more]));
      await this.#disk.sync(acksPath);
    };
    const { signal, monotonicMs } = hooks;
    const sent = await sendWindowed({ known, count: entry.chunkBytes.length, send, note, signal, monotonicMs });
    if (sent === undefined) return false;
    // Without a commit the log's collection takes the chunks.
    if (!payload.holds()) return this.#corrupt(round, OTHER_BYTES);
    hooks.commitSending();
    if (signal.aborted) return false;
    const { seqs: chunkSeqs, noted } = sent;
    if (!commitSent) await note(chunkSeqs.slice(noted), [encodeCommitSent()]);
    await uplink.appendCommit(entry.manifest.round, `${entry.nonce}-commit`, { ...entry.manifest, chunkSeqs });
    await this.#committed.add(round, entry.job, nowMs());
    await this.#finish(round, entry.job);
    return true;
  }

  /** The acknowledgements so far, in a file to which more can be added. */
  async #openAcks(round: string): Promise<Acks> {
    const bytes = await this.#disk.read(`${this.#entry(round)}/${ACKS}`);
    const acks = decodeAcks(bytes);
    const lines = acks.chunkSeqs.map(encodeAck);
    if (acks.commitSent) lines.push(encodeCommitSent());
    // Rewritten whole if need be: half a line of a crash must not become part of the next one.
    if (bytes === undefined || Buffer.compare(bytes, Buffer.concat(lines)) !== 0)
      await writeAtomically(this.#disk, this.#entry(round), ACKS, lines);
    return acks;
  }

  /** Drops an update that nobody wants. */
  async discard(round: string): Promise<void> {
    // First out of sight, so that a crash never leaves half an entry under its name.
    const gone = `${this.#folder}/spool/.gone-${round}`;
    if ((await this.#disk.list(this.#entry(round))).length === 0) return;
    await this.#disk.remove(gone);
    await this.#disk.rename(this.#entry(round), gone);
    await this.#disk.sync(`${this.#folder}/spool`);
    await this.#disk.remove(gone);
  }

  /** After the marker: the inner state becomes the job's, the entry goes. Can be done again from any point. */
  async #finish(round: string, job: string): Promise<void> {
    const inner = `${this.#entry(round)}/${INNER}`;
    if ((await this.#disk.stat(inner)) !== undefined) {
      await this.#disk.rename(inner, `${this.#folder}/inner/${job}`);
      // The new name first: if only the old one were forgotten, the state would be lost.
      await this.#disk.sync(`${this.#folder}/inner`);
      await this.#disk.sync(this.#entry(round));
      await this.#forgetOtherLives(job);
    }
    await this.discard(round);
  }

  /** Removes what deleted jobs of the same name left: nothing will start from it. */
  async #forgetOtherLives(job: string): Promise<void> {
    for (const name of await this.#disk.list(`${this.#folder}/inner`)) {
      if (isOtherLife(name, job)) await this.#disk.remove(`${this.#folder}/inner/${name}`);
    }
  }

  #entry(round: string): string {
    return `${this.#folder}/spool/${round}`;
  }

  async #recover(): Promise<void> {
    for (const name of await this.#disk.list(`${this.#folder}/spool`)) {
      const path = `${this.#folder}/spool/${name}`;
      if (name.startsWith(".")) {
        await this.#disk.remove(path);
        continue;
      }
      const committed = this.#committed.jobOf(name);
      if (committed !== undefined) await this.#finish(name, committed);
      else await this.#verifyEntry(name).catch(() => undefined);
    }
  }

  /** Reads an entry whose payload is of its size; a damaged one is set aside and reported by code "SPOOL_CORRUPT". */
  async #loadEntry(round: string): Promise<SpoolEntry> {
    const path = this.#entry(round);
    const bytes = await this.#disk.read(`${path}/${ENTRY}`);
    const entry = bytes && decodeEntry(bytes);
    if (entry === undefined) return this.#corrupt(round, "its description is damaged");
    if (entry.key !== round) return this.#corrupt(round, "it is of another round");
    const stat = await this.#disk.stat(`${path}/${PAYLOAD}`);
    if (stat === undefined) return this.#corrupt(round, "its payload is missing");
    const expected = entry.chunkBytes.reduce((sum, size) => sum + size, 0);
    if (stat.sizeBytes === expected) return entry;
    return this.#corrupt(round, `its payload has ${stat.sizeBytes} bytes of ${expected}`);
  }

  /** As `#loadEntry`, and holds the payload against its checksum. */
  async #verifyEntry(round: string): Promise<void> {
    const entry = await this.#loadEntry(round);
    const payload = openPayload(this.#disk, `${this.#entry(round)}/${PAYLOAD}`, entry);
    for (const _ of entry.chunkBytes) (await payload.next()).release();
    if (!payload.holds()) await this.#corrupt(round, OTHER_BYTES);
  }

  async #corrupt(round: string, problem: string): Promise<never> {
    await this.#setAside(this.#entry(round), `spool-${round}`);
    this.#log.error("a spooled update is damaged and set aside", {
      round,
      problem,
      kept: `${this.#folder}/damaged/spool-${round}`,
    });
    throw new CodedError("SPOOL_CORRUPT", `the spooled update of ${round} is damaged: ${problem}`);
  }

  /** Keeps a damaged file or folder for a person to look at; the one before it of the same name goes. */
  async #setAside(path: string, name: string): Promise<void> {
    await this.#disk.remove(`${this.#folder}/damaged/${name}`);
    await this.#disk.rename(path, `${this.#folder}/damaged/${name}`);
  }
}

/** A full disk gets a reason and a remedy; anything else passes through. */
function asSpoolError(error: unknown, folder: string): unknown {
  const code = codeOf(error);
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  const message = `the disk under ${folder} is full; free space there or give the agent another --state-dir`;
  return new CodedError("SpoolFull", message, { cause: error });
}
