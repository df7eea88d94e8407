/** What of the JavaScript API of WebAssembly is used here; TypeScript ships it with the browser's names only. */
declare namespace WebAssembly {
  interface Module {
    readonly [Symbol.toStringTag]: string;
  }
  const Module: new (bytes: Uint8Array) => Module;
  const Instance: new (module: Module) => { readonly exports: unknown };
  interface Memory {
    readonly buffer: ArrayBuffer;
    /** Adds so many pages of 64 KiB; what was `buffer` before is then empty. */
    grow(pages: number): number;
  }
}
