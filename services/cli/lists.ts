import type { DeviceWithLease } from "#proto/shoal/v1/fleet_service.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { RoundWithResult } from "#proto/shoal/v1/job_service.js";
import type { Dataset, Model } from "#proto/shoal/v1/model.js";
import { allPages, call, type Clients } from "./calls.js";

const PAGE_SIZE = 500;

export function listJobs({ jobs }: Clients, labelSelector: Record<string, string> = {}): Promise<TrainingJob[]> {
  return allPages(
    (pageToken) => call(jobs.list.bind(jobs), { pageSize: PAGE_SIZE, pageToken, labelSelector }),
    (page) => page.jobs,
  );
}

export function listDevices(
  { fleet }: Clients,
  labelSelector: Record<string, string> = {},
): Promise<DeviceWithLease[]> {
  return allPages(
    (pageToken) => call(fleet.listDevices.bind(fleet), { pageSize: PAGE_SIZE, pageToken, labelSelector }),
    (page) => page.devices,
  );
}

export function listRounds({ jobs }: Clients, job: string): Promise<RoundWithResult[]> {
  return allPages(
    (pageToken) => call(jobs.listRounds.bind(jobs), { job, pageSize: PAGE_SIZE, pageToken }),
    (page) => page.rounds,
  );
}

export function listModels({ models }: Clients): Promise<Model[]> {
  return allPages(
    (pageToken) => call(models.listModels.bind(models), { pageSize: PAGE_SIZE, pageToken }),
    (page) => page.models,
  );
}

export function listDatasets({ models }: Clients): Promise<Dataset[]> {
  return allPages(
    (pageToken) => call(models.listDatasets.bind(models), { pageSize: PAGE_SIZE, pageToken }),
    (page) => page.datasets,
  );
}
