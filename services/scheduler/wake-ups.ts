import { roundName } from "#common/domain/resources.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { type Source, storeSource, triggerSource } from "#common/runtime/source.js";
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

/**
 * What makes a round worth a look: itself, its job, its tally and result, the devices in it, and, while it waits for
 * devices, any device that changes or comes back.
 */
export function roundSources(store: ResourceStore, waiting: ReadonlySet<string>): Source[] {
  return [
    storeSource(store, "Round", (name, round) => (round !== undefined && isFinal(round) ? [] : [name])),
    triggerSource("TrainingJob", (signal) => roundsOfJobs(store, signal)),
    triggerSource("UpdateTally", (signal) => storeSource(store, "UpdateTally").keys(signal)),
    triggerSource("RoundResult", (signal) => storeSource(store, "RoundResult").keys(signal)),
    triggerSource("Device", (signal) => roundsOfDevices(store, waiting, signal)),
    triggerSource("Lease", (signal) => roundsAwaitingDevices(store, waiting, signal)),
  ];
}

async function* roundsOfJobs(store: ResourceStore, signal: AbortSignal): AsyncGenerator<string> {
  for await (const event of store.watch("TrainingJob", { signal })) {
    const number = event.type === "put" ? (event.resource.status?.currentRound ?? 0) : 0;
    if (event.type === "put" && number > 0) yield roundName(event.resource.metadata?.name ?? "", number);
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
  waiting: ReadonlySet<string>,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const expiries = new Map<string, number>();
  for await (const event of store.watch("Lease", { signal })) {
    if (event.type === "delete") expiries.delete(event.name);
    if (event.type !== "put") continue;
    const name = event.resource.metadata?.name ?? "";
    const before = expiries.get(name);
    expiries.set(name, event.resource.expiresAtMs);
    if (before === undefined || event.resource.renewedAtMs > before) yield* waiting;
  }
}
