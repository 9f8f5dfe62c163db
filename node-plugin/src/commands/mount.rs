//! `mount`: one container at a directory, served in the foreground until it is unmounted.

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use blob_client::transport::failover::TransportMode;
use blob_client::{Client, Patience, UnreadableTags};
use blob_fs::{Profile, Resources, VolumeConfig};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::credentials::credentials;
use super::{BudgetArgs, DeviceArgs, first_look};
use crate::csi::account::Account;
use crate::csi::connect::{self, Connector, CredentialKind};
use crate::csi::volume_context::{Keeping, content_types};
use crate::mounts::bounded::bounded;
use crate::mounts::mounter::{Kernel, Mounter, Serving};
use crate::mounts::mountinfo::{self, Entry};

/// Options of `mount`.
#[derive(Debug, Clone, Args)]
#[allow(
    rustdoc::bare_urls,
    reason = "the text of --help, where angle brackets would be printed"
)]
#[command(after_help = "\
Credentials come from the environment, where `ps` does not show them: AZURE_STORAGE_KEY (and \
AZURE_STORAGE_ACCOUNT, when the URL does not name the account) or AZURE_STORAGE_SAS_TOKEN. Without either \
the container has to be public.

Prints one line, `mounted URL at DIR`, when the file system answers. Ctrl-C or SIGTERM before that gives \
up; after it, it unmounts and commits what is not written yet; a second one detaches a mount that is still \
in use. The exit code is 0 when everything written is in the container.

Example:
  AZURE_STORAGE_KEY=... vsc-blob-csi mount https://myaccount.blob.core.windows.net/photos /mnt/photos")]
pub struct MountArgs {
    /// ENDPOINT/CONTAINER[/PREFIX], for instance https://myaccount.blob.core.windows.net/photos, or
    /// http://127.0.0.1:10000/devstoreaccount1/photos for an emulator.
    #[arg(value_name = "URL")]
    pub url: String,
    /// Existing directory to mount at.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Refuse every change.
    #[arg(long)]
    pub read_only: bool,
    /// Owner of files that carry none [default: the caller].
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group of files that carry none [default: the caller's].
    #[arg(long)]
    pub gid: Option<u32>,
    /// Permission bits of files that carry none, octal.
    #[arg(long, value_name = "OCTAL", value_parser = octal, default_value = "644")]
    pub file_mode: u32,
    /// Permission bits of directories that carry none, octal.
    #[arg(long, value_name = "OCTAL", value_parser = octal, default_value = "755")]
    pub dir_mode: u32,
    /// Most blobs of a folder that is renamed; larger ones are refused (EXDEV), and `mv` copies them.
    #[arg(long, value_name = "BLOBS", default_value_t = blob_fs::config::RENAME_LIMIT)]
    pub rename_limit: usize,
    /// How long anybody waits for work that makes no progress; then it fails (EIO). From 1s to 1h.
    #[arg(long, value_name = "TIME", default_value_t)]
    pub timeout: Patience,
    /// What the mount is tuned for.
    #[arg(long, value_enum, default_value_t)]
    pub profile: ProfileArg,
    /// Which path requests take.
    #[arg(long, value_enum, default_value_t)]
    pub transport: TransportArg,
    /// Content type of new files: auto (by the extension), none, or one for all, as text/plain.
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    pub content_type: String,
    /// Write files whose index tags may not be read, and lose the tags.
    #[arg(long)]
    pub drop_index_tags: bool,
    /// Print requests and bytes per path to stderr at the end.
    #[arg(long)]
    pub stats_on_exit: bool,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
    /// See [`BudgetArgs`].
    #[command(flatten)]
    pub budget: BudgetArgs,
}

/// `--profile`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProfileArg {
    /// Mixed use, through the kernel's page cache.
    #[default]
    General,
    /// Large files read or written from one end to the other (direct I/O).
    Streaming,
    /// Many small files.
    #[value(name = "smallfiles")]
    SmallFiles,
    /// Data that nobody changes while it is mounted.
    ReadonlyShared,
}

/// `--transport`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TransportArg {
    /// The channel when the machine has it, HTTPS otherwise.
    #[default]
    Prefer,
    /// The channel only: fail without.
    Require,
    /// HTTPS only.
    Https,
}

impl From<ProfileArg> for Profile {
    fn from(arg: ProfileArg) -> Self {
        match arg {
            ProfileArg::General => Self::General,
            ProfileArg::Streaming => Self::Streaming,
            ProfileArg::SmallFiles => Self::SmallFiles,
            ProfileArg::ReadonlyShared => Self::ReadonlyShared,
        }
    }
}

impl From<TransportArg> for TransportMode {
    fn from(arg: TransportArg) -> Self {
        match arg {
            TransportArg::Prefer => Self::Prefer,
            TransportArg::Require => Self::Require,
            TransportArg::Https => Self::Https,
        }
    }
}

/// Mounts, serves, and ends as the help says.
pub async fn run(args: MountArgs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let dir = args
        .dir
        .canonicalize()
        .with_context(|| format!("DIR: {}", args.dir.display()))?;
    if !dir.is_dir() {
        bail!("DIR: {} is no directory", dir.display());
    }
    let resources = args.budget.resources()?;
    let paths = args.device.paths(&resources);
    tokio::select! {
        () = first_look(&paths) => {}
        () = signals.next() => bail!("stopped before anything was mounted"),
    }
    let connector = Connector::new(paths, resources.arena.clone());
    let (config, client) = tokio::select! {
        configured = configure(&args, &connector) => configured?,
        () = signals.next() => bail!("stopped before anything was mounted"),
    };
    let below = newest_at(&dir)?;
    let mut starting = pin!(start(config, &dir, &resources));
    let serving = tokio::select! {
        started = &mut starting => started?,
        () = signals.next() => {
            abandon(starting, &dir, below).await?;
            bail!("stopped before the file system answered; nothing was written");
        }
    };
    let mount = newest(&dir)?;
    println!("mounted {} at {}", args.url, dir.display());

    let ended = serving.ended();
    let mut detached = false;
    let serving = tokio::select! {
        // Unmounted by somebody else: fine as well.
        () = ended.cancelled() => serving,
        () = signals.next() => {
            detached = unmount(&dir, &mut signals).await?;
            match detached {
                true => serving,
                false => end_elsewhere(serving, &dir, mount, &mut signals).await?,
            }
        }
    };
    // On a thread of its own: the runtime would wait for a blocking task at the end, and a third signal must
    // not.
    let (done, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("serve".to_owned())
        // Nobody waits for the result after a third signal.
        .spawn(move || drop(done.send(serving.join())))
        .context("starting the serving thread")?;
    let result = tokio::select! {
        result = ended => result,
        () = signals.next(), if detached => bail!("stopped before everything was committed"),
    };
    if args.stats_on_exit {
        for path in client.transport().stats() {
            eprintln!(
                "{}: requests={} errors={} bytes_in={} bytes_out={} failed_over={}",
                path.path, path.requests, path.errors, path.bytes_in, path.bytes_out, path.failed_over
            );
        }
    }
    result
        .context("the serving thread")?
        .context("changes could not be committed")?;
    Ok(ExitCode::SUCCESS)
}

/// Everything a mount needs, after the container has answered once.
async fn configure(args: &MountArgs, connector: &Connector) -> anyhow::Result<(VolumeConfig, Client)> {
    let (account, container, prefix) = Account::split_url(&args.url)?;
    let credentials = credentials(&account, |name| std::env::var(name).ok())?;
    let kind = CredentialKind::of(&credentials);
    let keeping = Keeping {
        content_types: content_types(&args.content_type)?,
        unreadable_tags: if args.drop_index_tags {
            UnreadableTags::Drop
        } else {
            UnreadableTags::Refuse
        },
    };
    let client = connector.client(
        &account,
        credentials,
        args.transport.into(),
        &keeping,
        args.timeout,
    )?;
    let container = connect::container(&client, &container)?;
    let mut read_only = args.read_only || kind == CredentialKind::None;
    let rights = connect::check_mount(&account, &container, &prefix, read_only, kind).await?;
    if !read_only && !rights.write && rights.delete {
        tracing::warn!("the credential lacks the right to write (w): files can be deleted and not written");
    } else if !read_only && !rights.write {
        tracing::warn!("the credential lacks the right to write (w): mounted read-only");
        read_only = true;
    }
    let mut config = VolumeConfig::new(source(&account, container.name(), &prefix), Arc::new(container));
    config.prefix = prefix;
    config.read_only = read_only;
    config.rights = rights;
    config.uid = args.uid.unwrap_or_else(|| nix::unistd::getuid().as_raw());
    config.gid = args.gid.unwrap_or_else(|| nix::unistd::getgid().as_raw());
    config.file_mode = args.file_mode;
    config.dir_mode = args.dir_mode;
    config.rename_limit = args.rename_limit;
    config.timeout = args.timeout;
    config.profile = args.profile.into();
    config.negative_timeout = config.profile.negative_timeout();
    Ok((config, client))
}

/// Shown as the mount's source.
fn source(account: &Account, container: &str, prefix: &str) -> String {
    match prefix {
        "" => format!("{}/{container}", account.name),
        prefix => format!("{}/{container}/{prefix}", account.name),
    }
}

/// How long the first answer of the file system may take.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

async fn start(config: VolumeConfig, dir: &Path, resources: &Resources) -> anyhow::Result<Box<dyn Serving>> {
    let (at, resources) = (dir.to_owned(), resources.clone());
    let serving = bounded("mount", FIRST_ANSWER, move || {
        Kernel.serve_at(config, &at, &resources)
    })
    .await?;
    let serving =
        serving.with_context(|| format!("mounting at {} (root and /dev/fuse are needed)", dir.display()))?;
    let at = dir.to_owned();
    let answered = bounded("stat", FIRST_ANSWER, move || Kernel.answers(&at)).await;
    if let Err(error) = answered.map_err(anyhow::Error::from).and_then(|r| Ok(r?)) {
        let _ = Kernel.unmount(dir, true);
        return Err(error.context(format!("{}: mounted, but it does not answer", dir.display())));
    }
    Ok(serving)
}

/// The uppermost mount at a directory.
fn newest(dir: &Path) -> anyhow::Result<Option<Entry>> {
    let table = Kernel.table().context("reading the mount table")?;
    Ok(mountinfo::at(&table, dir).cloned())
}

/// Its connection.
fn newest_at(dir: &Path) -> anyhow::Result<Option<u32>> {
    Ok(newest(dir)?.map(|mount| mount.minor))
}

/// Ends a start that nobody wants any more: takes its mount away, which what is left of it ends with the
/// process. `below`: what was mounted there before.
async fn abandon(
    mut starting: Pin<&mut impl Future<Output = anyhow::Result<Box<dyn Serving>>>>,
    dir: &Path,
    below: Option<u32>,
) -> anyhow::Result<()> {
    // Mounting is the first step of a start: this is not for long.
    while newest_at(dir)? == below {
        tokio::select! {
            started = &mut starting => match started {
                Ok(_) => break,
                // It failed by itself and left nothing.
                Err(_) => return Ok(()),
            },
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    let detached = Kernel.unmount(dir, true);
    detached.with_context(|| format!("umount -l {}", dir.display()))
}

/// Between attempts to unmount a mount that is in use.
const RETRY: Duration = Duration::from_millis(200);

/// Unmounts, waiting while it is in use; a further signal detaches it. True when it was detached.
async fn unmount(dir: &Path, signals: &mut Signals) -> anyhow::Result<bool> {
    let mut told = false;
    loop {
        let at = dir.to_owned();
        match bounded("umount", FIRST_ANSWER, move || Kernel.unmount(&at, false)).await? {
            Ok(()) => return Ok(false),
            // Somebody else was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if !told {
                    eprintln!(
                        "{} is in use; waiting. A second Ctrl-C or SIGTERM detaches it.",
                        dir.display()
                    );
                    told = true;
                }
            }
            Err(error) => return Err(error).with_context(|| format!("umount {}", dir.display())),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = signals.next() => {
                Kernel.unmount(dir, true).with_context(|| format!("umount -l {}", dir.display()))?;
                return Ok(true);
            }
        }
    }
}

/// The kernel ends a session with the last mount of it, and within this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// After the unmount: waits while a copy of the mount is in another mount namespace (a container that was
/// started meanwhile has one). A further signal stores what was written there and ends it there as well.
async fn end_elsewhere(
    serving: Box<dyn Serving>,
    dir: &Path,
    mount: Option<Entry>,
    signals: &mut Signals,
) -> anyhow::Result<Box<dyn Serving>> {
    let ended = serving.ended();
    if tokio::time::timeout(AT_ONCE, ended.cancelled()).await.is_ok() {
        return Ok(serving);
    }
    eprintln!(
        "{} is still mounted in another mount namespace; waiting. A second Ctrl-C or SIGTERM detaches it \
         there.",
        dir.display()
    );
    tokio::select! {
        () = ended.cancelled() => return Ok(serving),
        () = signals.next() => {}
    }
    let (done, stored) = oneshot::channel();
    std::thread::Builder::new()
        .name("sync".to_owned())
        // Nobody waits for the result after a third signal.
        .spawn(move || drop(done.send((serving.sync(), serving))))
        .context("starting the thread that stores what is left")?;
    let (synced, serving) = tokio::select! {
        stored = stored => stored.context("the thread that stores what is left")?,
        () = signals.next() => bail!("stopped before everything was committed"),
    };
    synced.context("changes could not be committed")?;
    if let Some(mount) = mount {
        let aborted = bounded("abort", FIRST_ANSWER, move || Kernel.abort(mount.minor)).await?;
        aborted.with_context(|| format!("detaching {} elsewhere", dir.display()))?;
    }
    Ok(serving)
}

/// SIGINT and SIGTERM, each counted.
struct Signals {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} is not octal permission bits, at most 777")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(octal("0755"), Ok(0o755));
        assert!(octal("888").is_err() && octal("1777").is_err());
    }
}
