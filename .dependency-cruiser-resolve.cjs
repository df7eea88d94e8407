// How the rooms' subpath imports (package.json "imports") are found as sources instead of as build output.
const { join } = require("node:path");
const room = (path) => join(process.cwd(), path);

module.exports = {
  resolve: {
    alias: {
      "#common": room("services/common"),
      "#services": room("services"),
      "#agent": room("agent"),
      "#proto": room("proto/gen"),
      "#test": room("test"),
    },
    extensionAlias: { ".js": [".ts", ".js"] },
  },
};
