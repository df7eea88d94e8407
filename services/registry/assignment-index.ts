import type { ResourceStore } from "#common/ports/resource-store.js";
import type { Device } from "#proto/shoal/v1/device.js";
import type { AssignedTask, SiteRound } from "#proto/shoal/v1/device_wire.js";
import type { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { devicesToNudge, isOpen, openTasks, siteRounds } from "./assignments.js";

const versionOf = (tally: UpdateTally | undefined): bigint => BigInt(tally?.metadata?.resourceVersion ?? "0");

/** The open rounds and their tallies, kept in memory by watches. Every replica has its own. */
export class AssignmentIndex {
  private readonly open = new Map<string, Round>();
  private readonly tallies = new Map<string, UpdateTally>();
  /** Rounds whose tally is being read before they open; changes that arrive meanwhile are kept. */
  private readonly opening = new Set<string>();

  constructor(
    private readonly store: ResourceStore,
    /** Told whose assignments changed. */
    private readonly onChange: (devices: readonly string[]) => void,
  ) {}

  /** Open assignments of a device, oldest first. */
  tasks(device: Device | undefined): AssignedTask[] {
    return openTasks(device, this.open.values(), this.tallies);
  }

  /** Open rounds of a gateway's site, oldest first. */
  siteRounds(site: string): SiteRound[] {
    return siteRounds(site, this.open.values(), this.tallies);
  }

  /** Follows the store until the signal aborts. Calls `onSynced` once everything that exists is known. */
  async follow(signal: AbortSignal, onSynced: () => void): Promise<void> {
    await Promise.all([this.followRounds(signal, onSynced), this.followTallies(signal)]);
  }

  private async followRounds(signal: AbortSignal, onSynced: () => void): Promise<void> {
    for await (const event of this.store.watch("Round", { signal })) {
      if (event.type === "synced") onSynced();
      else if (event.type === "delete") this.close(event.name, undefined);
      else if (isOpen(event.resource)) await this.admit(event.resource);
      else this.close(event.resource.metadata?.name ?? "", event.resource);
    }
  }

  private async followTallies(signal: AbortSignal): Promise<void> {
    for await (const event of this.store.watch("UpdateTally", { signal })) {
      if (event.type === "put") this.keepTally(event.resource);
    }
  }

  private keepTally(tally: UpdateTally): void {
    const name = tally.metadata?.name ?? "";
    if (!this.open.has(name) && !this.opening.has(name)) return;
    if (versionOf(tally) > versionOf(this.tallies.get(name))) this.tallies.set(name, tally);
  }

  private async admit(round: Round): Promise<void> {
    const name = round.metadata?.name ?? "";
    const before = this.open.get(name);
    if (before === undefined) {
      this.opening.add(name);
      try {
        const tally = await this.store.get("UpdateTally", name);
        if (tally !== undefined) this.keepTally(tally);
      } finally {
        this.opening.delete(name);
      }
    }
    this.open.set(name, round);
    this.onChange(devicesToNudge(before, round));
  }

  private close(name: string, round: Round | undefined): void {
    const before = this.open.get(name);
    this.open.delete(name);
    this.tallies.delete(name);
    this.onChange(devicesToNudge(before, round));
  }
}
