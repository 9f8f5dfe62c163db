//! What the files of the node say of kernel modules: which there are, and which are not to be loaded.

use std::fs;
use std::path::Path;

use super::config::LoaderConfig;
use super::sysfs::IN_BOX;

/// Where modprobe looks for its settings (modprobe.d(5)).
const MODPROBE_FOLDERS: [&str; 5] = [
    "etc/modprobe.d",
    "run/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
];

/// Where the machine says that a module is not to be loaded: on the kernel's command line, or in the settings
/// of modprobe, as far as they can be seen from here. The kernel itself obeys only the former.
pub(super) fn switched_off(config: &LoaderConfig, module: &str) -> Option<String> {
    let line = fs::read_to_string(config.root.join("proc/cmdline")).unwrap_or_default();
    for word in line.split_whitespace() {
        if let Some((key @ ("module_blacklist" | "modprobe.blacklist"), list)) = word.split_once('=')
            && list.split(',').any(|name| module_name(name) == module)
        {
            return Some(format!("{key} on the kernel's command line"));
        }
    }
    MODPROBE_FOLDERS.iter().find_map(|folder| {
        let files = fs::read_dir(config.host_root.join(folder)).ok()?;
        files.flatten().find_map(|file| {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "conf") {
                return None;
            }
            let text = fs::read_to_string(&path).ok()?;
            let line = text.lines().find(|line| {
                let mut words = line.split_whitespace();
                matches!(words.next(), Some("blacklist" | "install"))
                    && words.next().is_some_and(|name| module_name(name) == module)
            })?;
            Some(format!("{}: {}", path.display(), line.trim()))
        })
    })
}

/// Whether the node's kernel comes with the module, compressed or not; `None` when its modules cannot be seen
/// from here.
pub(super) fn in_box(host_root: &Path, kernel: &str) -> Option<bool> {
    in_box_entry(&host_root.join("lib/modules").join(kernel)).map(|entry| entry.is_some())
}

/// The module's file, and the files that it needs, as the index of a kernel's folder lists them; the outer
/// `None` when there is no index.
pub(super) fn in_box_entry(folder: &Path) -> Option<Option<(String, Vec<String>)>> {
    let text = fs::read_to_string(folder.join("modules.dep")).ok()?;
    Some(text.lines().find_map(|line| {
        let (file, needed) = line.split_once(':')?;
        (module_name(file) == IN_BOX).then(|| {
            (
                file.to_owned(),
                needed.split_whitespace().map(str::to_owned).collect(),
            )
        })
    }))
}

/// Name in the kernel of a module's file: without folder and endings, dashes as underscores.
pub(super) fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    let name = name.split_once(".ko").map_or(name, |(name, _)| name);
    name.replace('-', "_")
}
