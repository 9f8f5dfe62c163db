//! What the node plugin takes away from the node when it ends: its own folders, as far as nothing is in them.

use std::fs;
use std::io;
use std::path::Path;

/// The loader's folder beside the socket, where the chart has it.
const LOADER: &str = "loader";
/// The loader's lock, which nobody holds any more; its record of a loaded module stays, as the module does.
const LOADER_LOCK: &str = "driver.lock";
const LOADER_RECORD: &str = "driver.json";

/// Removes the state folder, the loader's folder and the folder of the socket, each when it is empty: after
/// the last volume there is no trace of the driver, and a successor makes them anew. Nothing else is done
/// when the state folder stays (a successor waits for its lock: its container has the others mounted), or one
/// serves the socket already. What cannot be removed stays; it is told in the log at level debug.
pub fn remove_empty(state: &Path, socket: &Path) {
    if socket.exists() {
        return;
    }
    let removed = fs::remove_dir(state);
    let stays = state.exists();
    told(state, removed);
    if stays {
        return;
    }
    let Some(plugin) = socket.parent() else { return };
    let loader = plugin.join(LOADER);
    if loader.is_dir() && !loader.join(LOADER_RECORD).exists() {
        // A missing lock is as good as a removed one.
        let _ = fs::remove_file(loader.join(LOADER_LOCK));
        told(&loader, fs::remove_dir(&loader));
    }
    told(plugin, fs::remove_dir(plugin));
}

fn told(folder: &Path, removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::debug!(folder = %folder.display(), %error, "the folder stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plugin {
        root: tempfile::TempDir,
    }

    impl Plugin {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for folder in ["plugin/state", "plugin/loader"] {
                fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            fs::write(root.path().join("plugin/loader/driver.lock"), "").unwrap();
            Self { root }
        }

        fn has(&self, path: &str) -> bool {
            self.root.path().join(path).exists()
        }

        fn write(&self, path: &str) {
            fs::write(self.root.path().join(path), "x").unwrap();
        }

        fn remove_empty(&self) {
            let plugin = self.root.path().join("plugin");
            remove_empty(&plugin.join("state"), &plugin.join("csi.sock"));
        }
    }

    #[test]
    fn nothing_is_left_when_nothing_is_mounted() {
        let plugin = Plugin::new();
        plugin.remove_empty();
        assert!(!plugin.has("plugin"));
        // And again, with nothing there.
        plugin.remove_empty();
    }

    #[test]
    fn records_of_mounts_and_of_a_loaded_module_stay() {
        let plugin = Plugin::new();
        plugin.write("plugin/state/1.json");
        plugin.write("plugin/loader/driver.json");
        plugin.remove_empty();
        assert!(plugin.has("plugin/state/1.json"));
        assert!(plugin.has("plugin/loader/driver.json"));
        assert!(plugin.has("plugin/loader/driver.lock"));
    }

    #[test]
    fn a_successor_keeps_its_folders() {
        let plugin = Plugin::new();
        plugin.write("plugin/state/successor");
        plugin.remove_empty();
        assert!(plugin.has("plugin/state") && plugin.has("plugin/loader/driver.lock"));
        let plugin = Plugin::new();
        plugin.write("plugin/csi.sock");
        plugin.remove_empty();
        assert!(plugin.has("plugin/state") && plugin.has("plugin/loader"));
    }
}
