import test from "ava";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { resourceStoreConformance } from "./resource-store.js";

const store = new MemoryResourceStore();
resourceStoreConformance(test, "memory store", () => store);
