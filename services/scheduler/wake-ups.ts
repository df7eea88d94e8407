import { roundName } from "#common/domain/resources.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { type Source, storeSource, triggerSource } from "#common/runtime/source.js";
import type { FleetHints } from "./fleet-hints.js";
import { isFinal } from "./fleet-view.js";

/** What makes a job worth a look: itself, and its rounds. */
export function jobSources(store: ResourceStore): Source[] {
  return [storeSource(store, "TrainingJob"), triggerSource("Round", (signal) => jobsOfRounds(store, signal))];
}

async function* jobsOfRounds(store: ResourceStore, signal: AbortSignal): AsyncGenerator<string> {
  for await (const event of store.watch("Round", { signal })) {
    if (event.type === "put" && event.resource.spec !== undefined) yield event.resource.spec.job;
  }
}

/** Rounds that wait for devices, and the open one of each asynchronous job, as far as this replica knows. */
export interface RoundHints {
  readonly waiting: ReadonlySet<string>;
  readonly collecting: ReadonlyMap<string, string>;
  /** Told of every lease. */
  readonly fleet: FleetHints;
}

/**
 * What makes a round worth a look: itself, its job, its tally and result, the devices in it, and, while it waits for
 * devices, any device that changes or comes back. The open round of an asynchronous job also follows its earlier ones.
 */
export function roundSources(store: ResourceStore, { waiting, collecting, fleet }: RoundHints): Source[] {
  /** A round, and the one that may take its updates. */
  const withTaker = (name: string, job: string | undefined): string[] => {
    const taker = collecting.get(job ?? "");
    return taker === undefined || taker === name ? [name] : [name, taker];
  };
  return [
    storeSource(store, "Round", (name, round) => {
      const keys = withTaker(name, round?.spec?.job);
      return round !== undefined && isFinal(round) ? keys.slice(1) : keys;
    }),
    triggerSource("TrainingJob", (signal) => roundsOfJobs(store, signal)),
    triggerSource("UpdateTally", (signal) =>
      storeSource(store, "UpdateTally", (name, tally) => withTaker(name, tally?.metadata?.labels["job"])).keys(signal),
    ),
    triggerSource("RoundResult", (signal) => storeSource(store, "RoundResult").keys(signal)),
    triggerSource("Device", (signal) => roundsOfDevices(store, waiting, signal)),
    triggerSource("Lease", (signal) => roundsAwaitingDevices(store, { waiting, collecting, fleet }, signal)),
  ];
}

async function* roundsOfJobs(store: ResourceStore, signal: AbortSignal): AsyncGenerator<string> {
  for await (const event of store.watch("TrainingJob", { signal })) {
    if (event.type !== "put") continue;
    const { metadata, spec, status } = event.resource;
    const newest = status?.currentRound ?? 0;
    const maxStaleness = spec?.strategy?.maxStaleness ?? 0;
    // Of an asynchronous job also those whose devices train on, and the one that has just become too old.
    const oldest = maxStaleness > 0 ? newest - maxStaleness - 1 : newest;
    for (let number = newest; number >= Math.max(1, oldest); number--) yield roundName(metadata?.name ?? "", number);
  }
}

async function* roundsOfDevices(
  store: ResourceStore,
  waiting: ReadonlySet<string>,
  signal: AbortSignal,
): AsyncGenerator<string> {
  for await (const event of store.watch("Device", { signal })) {
    if (event.type === "synced") continue;
    yield* waiting;
    if (event.type === "delete") continue;
    const ended = (event.resource.status?.assignments ?? []).filter(
      ({ phase }) => phase === "Refused" || phase === "Failed",
    );
    yield* ended.map(({ round }) => round);
    if (event.resource.spec?.draining === true) {
      yield* (event.resource.status?.assignments ?? []).map(({ round }) => round);
    }
  }
}

/** Leases are renewed all the time; only one that begins, or begins anew, may end a wait. */
async function* roundsAwaitingDevices(
  store: ResourceStore,
  { waiting, collecting, fleet }: RoundHints,
  signal: AbortSignal,
): AsyncGenerator<string> {
  for await (const event of store.watch("Lease", { signal })) {
    if (event.type === "delete") fleet.forget(event.name);
    if (event.type !== "put") continue;
    const isNews = fleet.note(event.resource.metadata?.name ?? "", event.resource);
    if (isNews) yield* [...waiting, ...collecting.values()];
  }
}
