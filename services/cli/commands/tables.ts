import type { DeviceWithLease } from "#proto/shoal/v1/fleet_service.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { RoundWithResult } from "#proto/shoal/v1/job_service.js";
import type { Dataset, Model } from "#proto/shoal/v1/model.js";
import type { RoundResult } from "#proto/shoal/v1/round.js";
import { GATEWAY_LABEL, gatewaySiteOf, memberUpdates, SITE_LABEL, siteOf } from "#common/domain/site.js";
import { formatAge, formatBytes, formatCount, formatDuration, formatLabels, formatLoss } from "../output/format.js";
import type { Column } from "../output/table.js";

export const jobColumns = (nowMs: number): Column<TrainingJob>[] => [
  { title: "NAME", cell: (job) => job.metadata?.name ?? "" },
  { title: "PHASE", cell: (job) => job.status?.phase ?? "Pending" },
  { title: "ROUNDS", right: true, cell: (job) => `${job.status?.completedRounds ?? 0}/${job.spec?.rounds ?? 0}` },
  { title: "TRAIN LOSS", right: true, cell: (job) => formatLoss(job.status?.trainLoss) },
  { title: "EVAL LOSS", right: true, cell: (job) => formatLoss(job.status?.evalLoss) },
  { title: "UP", right: true, cell: (job) => formatBytes(job.status?.bytesUp ?? 0) },
  { title: "DOWN", right: true, cell: (job) => formatBytes(job.status?.bytesDown ?? 0) },
  { title: "AGE", right: true, cell: (job) => formatAge(job.metadata?.createdAtMs ?? 0, nowMs) },
];

/** "Ready", "Gone", with "Cordoned" or "Draining" added. */
export function deviceState({ device, alive }: DeviceWithLease): string {
  const asked = device?.spec?.draining === true ? ",Draining" : device?.spec?.cordoned === true ? ",Cordoned" : "";
  return (alive ? "Ready" : "Gone") + asked;
}

/** What a device does at the moment, in a few words. */
export function deviceActivity({ device }: DeviceWithLease): string {
  const last = device?.status?.assignments.at(-1);
  if (last === undefined) return "idle";
  return last.steps > 0 && last.phase === "Training"
    ? `${last.round} ${last.phase} ${last.step}/${last.steps}`
    : `${last.round} ${last.phase}`;
}

/** The site of a device; "site (gateway)" for its gateway, "-" without one. */
export function deviceSite({ device }: DeviceWithLease): string {
  const site = siteOf(device);
  if (site === "") return "-";
  return gatewaySiteOf(device) === undefined ? site : `${site} (gateway)`;
}

const labelsWithoutSite = (labels: Readonly<Record<string, string>>): Record<string, string> =>
  Object.fromEntries(Object.entries(labels).filter(([key]) => key !== SITE_LABEL && key !== GATEWAY_LABEL));

export const deviceColumns = (nowMs: number): Column<DeviceWithLease>[] => [
  { title: "NAME", cell: ({ device }) => device?.metadata?.name ?? "" },
  { title: "STATE", cell: deviceState },
  { title: "SITE", cell: deviceSite },
  { title: "CORES", right: true, cell: ({ device }) => String(device?.status?.facts?.cores ?? 0) },
  { title: "GFLOP/S", right: true, cell: ({ device }) => (device?.status?.facts?.gflops ?? 0).toFixed(1) },
  { title: "MEMORY", right: true, cell: ({ device }) => formatBytes(device?.status?.facts?.memoryBytes ?? 0) },
  {
    title: "TOKENS",
    right: true,
    cell: ({ device }) => formatCount((device?.status?.datasets ?? []).reduce((sum, { tokens }) => sum + tokens, 0)),
  },
  { title: "LABELS", cell: ({ device }) => formatLabels(labelsWithoutSite(device?.metadata?.labels ?? {})) },
  { title: "BEAT", right: true, cell: ({ lease }) => formatAge(lease?.renewedAtMs ?? 0, nowMs) },
  { title: "DOES", cell: deviceActivity },
];

function roundSeconds({ round, result }: RoundWithResult): string {
  const startMs = round?.metadata?.createdAtMs ?? 0;
  const endMs = result?.metadata?.createdAtMs ?? 0;
  return startMs > 0 && endMs > 0 ? formatDuration(endMs - startMs) : "-";
}

/** Devices whose work is in a round, also those whose gateway folded it. */
function foldedDevices(result: RoundResult | undefined): number {
  return (result?.folded ?? []).flatMap(({ manifest }) => (manifest === undefined ? [] : memberUpdates(manifest)))
    .length;
}

export const roundColumns: Column<RoundWithResult>[] = [
  { title: "ROUND", right: true, cell: ({ round }) => String(round?.spec?.number ?? 0) },
  { title: "PHASE", cell: ({ round }) => round?.status?.phase ?? "Planning" },
  { title: "COHORT", right: true, cell: ({ round }) => String(round?.status?.assignments.length ?? 0) },
  { title: "FOLDED", right: true, cell: ({ result }) => String(foldedDevices(result)) },
  { title: "REFUSED", right: true, cell: ({ result }) => String(result?.refused.length ?? 0) },
  { title: "TRAIN LOSS", right: true, cell: ({ result }) => formatLoss(result?.trainLoss) },
  { title: "EVAL LOSS", right: true, cell: ({ result }) => formatLoss(result?.evalLoss) },
  { title: "UP", right: true, cell: ({ result }) => formatBytes(result?.bytesUp ?? 0) },
  { title: "DOWN", right: true, cell: ({ result }) => formatBytes(result?.bytesDown ?? 0) },
  { title: "TIME", right: true, cell: roundSeconds },
];

export const modelColumns = (nowMs: number): Column<Model>[] => [
  { title: "NAME", cell: (model) => model.metadata?.name ?? "" },
  { title: "FAMILY", cell: (model) => model.family },
  { title: "PARAMETERS", right: true, cell: (model) => formatCount(model.parameters) },
  { title: "TOKENIZER", cell: (model) => model.tokenizer?.kind ?? "-" },
  {
    title: "ORIGIN",
    cell: ({ origin }) =>
      origin === undefined || origin.job === "" ? "imported" : `${origin.job} round ${origin.round}`,
  },
  { title: "SIZE", right: true, cell: (model) => formatBytes(model.weights?.sizeBytes ?? 0) },
  { title: "AGE", right: true, cell: (model) => formatAge(model.metadata?.createdAtMs ?? 0, nowMs) },
];

export const datasetColumns: Column<Dataset>[] = [
  { title: "NAME", cell: (dataset) => dataset.metadata?.name ?? "" },
  { title: "PURPOSES", cell: (dataset) => dataset.spec?.purposes.join(",") ?? "" },
  { title: "MIN COHORT", right: true, cell: (dataset) => String(dataset.spec?.minCohort ?? 0) },
  { title: "STEWARD", cell: (dataset) => dataset.spec?.steward ?? "" },
  { title: "LICENCE", cell: (dataset) => dataset.spec?.licence ?? "" },
  { title: "DESCRIPTION", cell: (dataset) => dataset.spec?.description ?? "" },
];
