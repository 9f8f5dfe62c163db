//! Mount options: ours and blobfuse2's spellings of the same.

use std::time::Duration;

use blob_client::{NoPatience, Patience};
use blob_fs::config::Ownership;

use super::keys::nearest;
use super::table::{ALWAYS, INSTEAD, option_names};
use crate::error::{Error, Reason, Result};

/// What `mountOptions` of a PersistentVolume or StorageClass ask for; `None` where nothing was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Refuse changes.
    pub read_only: bool,
    /// Owner of files that carry none.
    pub uid: Option<u32>,
    /// Group of files that carry none.
    pub gid: Option<u32>,
    /// Bits taken from the modes.
    pub umask: Option<u32>,
    /// Permission bits of files that carry none.
    pub file_mode: Option<u32>,
    /// Permission bits of directories that carry none.
    pub dir_mode: Option<u32>,
    /// How long the kernel keeps attributes.
    pub attr_timeout: Option<Duration>,
    /// How long the kernel keeps names.
    pub entry_timeout: Option<Duration>,
    /// How long the kernel keeps absent names.
    pub negative_timeout: Option<Duration>,
    /// Keep the page cache across opens.
    pub kernel_cache: Option<bool>,
    /// Most blobs of a folder that is renamed.
    pub rename_limit: Option<usize>,
    /// How long anybody waits for work that makes no progress.
    pub timeout: Option<Patience>,
}

/// Modes when nobody said anything: every user of a pod may read and write, as with blob.csi.azure.com.
const FILE_MODE: u32 = 0o666;
const DIR_MODE: u32 = 0o777;
/// Modes with a group from the pod's fsGroup: the group writes, others read; folders hand the group on.
const GROUP_FILE_MODE: u32 = 0o664;
const GROUP_DIR_MODE: u32 = 0o2775;

impl MountOptions {
    /// Reads mount flags; `-o a,b=1`, `--a`, `a,b` and blobfuse2's dashes all mean the same.
    pub fn parse<S: AsRef<str>>(flags: &[S]) -> Result<Self> {
        let mut options = Self::default();
        for flag in flags {
            for word in flag
                .as_ref()
                .split([',', ' ', '\t'])
                .filter(|w| !w.is_empty() && *w != "-o")
            {
                options.take(word)?;
            }
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<()> {
        let bare = word
            .strip_prefix("-o")
            .filter(|w| !w.is_empty() && !w.starts_with('-'))
            .unwrap_or(word);
        let bare = bare.trim_start_matches('-');
        let (name, value) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (bare, None),
        };
        let name = name.to_ascii_lowercase().replace('-', "_");
        let seconds = || seconds(&name, value).map(Some);
        match name.as_str() {
            "ro" | "read_only" => self.read_only = switch(&name, value)?,
            "allow_other" => {
                if !switch(&name, value)? {
                    return Err(bad(&name, value, "true: pods run as other users than the driver"));
                }
            }
            "kernel_cache" => self.kernel_cache = Some(switch(&name, value)?),
            "rename_limit" => self.rename_limit = Some(number(&name, value, 10)? as usize),
            "timeout" => self.timeout = Some(patience(&name, value)?),
            "uid" => self.uid = Some(number(&name, value, 10)?),
            "gid" => self.gid = Some(number(&name, value, 10)?),
            "umask" => self.umask = Some(mode(&name, value)?),
            "file_mode" => self.file_mode = Some(mode(&name, value)?),
            "dir_mode" => self.dir_mode = Some(mode(&name, value)?),
            "attr_timeout" => self.attr_timeout = seconds()?,
            "entry_timeout" => self.entry_timeout = seconds()?,
            "negative_timeout" => self.negative_timeout = seconds()?,
            name if ALWAYS.contains(&name) => {
                if !switch(name, value)? {
                    return Err(bad(name, value, "true: every mount is so"));
                }
            }
            name => return Err(unknown(name, word)),
        }
        Ok(())
    }

    /// Permission bits of files and directories that carry none, umask applied; `grouped` when the pod's
    /// fsGroup owns the volume.
    pub fn modes(&self, grouped: bool) -> (u32, u32) {
        let (file, dir) = if grouped {
            (GROUP_FILE_MODE, GROUP_DIR_MODE)
        } else {
            (FILE_MODE, DIR_MODE)
        };
        let mask = !self.umask.unwrap_or(0);
        let inherited = dir & 0o7000;
        (
            self.file_mode.unwrap_or(file) & mask,
            (self.dir_mode.unwrap_or(dir) & mask) | inherited,
        )
    }

    /// Whose files and folders are that pods make, as far as the options say; `group`: the pod's fsGroup.
    pub fn ownership(&self, group: Option<u32>) -> Ownership {
        let (file, _) = self.modes(group.is_some());
        let gid = group.or(self.gid);
        let umask = self.umask.unwrap_or(0);
        // What a mode says that somebody has written down holds for others and for the group; whether a file
        // can be executed is its maker's to say.
        let kept = |mode: Option<u32>, bits: u32| umask | (!mode.unwrap_or(0o777) & bits);
        Ownership {
            uid: self.uid,
            gid,
            file_umask: kept(self.file_mode, 0o066),
            dir_umask: kept(self.dir_mode, 0o077),
            group_writes: gid.is_some() && file & 0o020 != 0,
        }
    }
}

fn unknown(name: &str, word: &str) -> Error {
    if let Some((_, instead)) = INSTEAD.iter().find(|(known, _)| *known == name) {
        return Error::new(
            Reason::UnknownMountOption,
            format!("mountOptions: option {word:?} is not offered: {instead}"),
        );
    }
    let near = nearest(name, option_names().chain(ALWAYS.iter().copied()));
    let near = near
        .map(|near| format!("; did you mean {near:?}?"))
        .unwrap_or_default();
    let known: Vec<_> = option_names().collect();
    let known = known.join(", ");
    Error::new(
        Reason::UnknownMountOption,
        format!("mountOptions: unknown option {word:?}{near} (known: {known})"),
    )
}

fn bad(name: &str, value: Option<&str>, wanted: &str) -> Error {
    let value = value.unwrap_or("");
    Error::new(
        Reason::InvalidValue,
        format!("mountOptions: {name}={value} should be {wanted}"),
    )
}

fn switch(name: &str, value: Option<&str>) -> Result<bool> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(_) => Err(bad(name, value, "true or false")),
    }
}

fn number(name: &str, value: Option<&str>, radix: u32) -> Result<u32> {
    let parsed = value.and_then(|v| u32::from_str_radix(v, radix).ok());
    parsed.ok_or_else(|| bad(name, value, "a number"))
}

/// Seconds and parts of one, as FUSE's own options are written.
fn seconds(name: &str, value: Option<&str>) -> Result<Duration> {
    let plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let parsed = value.filter(plain).and_then(|text| text.parse().ok());
    let parsed = parsed.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let kept = parsed.filter(|time| time.as_secs() <= u64::from(u32::MAX));
    kept.ok_or_else(|| bad(name, value, "a number of seconds, as 1 or 0.5"))
}

fn patience(name: &str, value: Option<&str>) -> Result<Patience> {
    let parsed = value.unwrap_or_default().parse();
    parsed.map_err(|wanted: NoPatience| bad(name, value, &wanted.to_string()))
}

/// Octal permission bits, with or without a leading `0` or `0o`.
fn mode(name: &str, value: Option<&str>) -> Result<u32> {
    let digits = value.map(|v| v.trim_start_matches("0o"));
    match digits.and_then(|v| u32::from_str_radix(v, 8).ok()) {
        Some(bits) if bits <= 0o777 => Ok(bits),
        _ => Err(bad(name, value, "octal permission bits, at most 777")),
    }
}
