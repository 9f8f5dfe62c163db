//! A cell of the table: a real mount, a fault, the model under it, and what is there when it is over.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blob_client::Metadata;
use e2e::harness::backend::{Backend, ContainerView, Kind as Service};
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::setup::{self, Setup};
use e2e::harness::{PATIENCE, runtime, tree, wait_for};
use e2e::proxy::{Certificates, Fault, FaultProxy};
use e2e::store::DEV_ACCOUNT;
use e2e::vsp::{self, Faults};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use url::Url;

use crate::kinds::{Kind, Means};
use crate::metronome::Metronome;
use crate::model::{self, Left, Opened, Step, Waited, Way};

/// Between two looks at what is to come.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Programs that take the steps side by side.
const PROGRAMS: usize = 6;
/// The service's name, where it has one.
const NAME: &str = "faults.test";
/// Reads, all at once, of a cell that counts what the service is asked for.
const READERS: usize = 64;
/// One read.
const READ: usize = 4096;
/// Reads that show what one costs while all is well.
const SAMPLES: usize = 8;
/// Repetitions that are there before an outage begins: the account's and the volume's (docs/transports.md).
const RESERVE: f64 = 30.0;

/// What an operation may take beside what it waits for.
const ALLOWANCE: Duration = Duration::from_secs(1);
/// How often an operation is handed from one thread to another, more or less: each can be late.
const STEPS_OF_AN_OPERATION: u32 = 20;

/// Where a cell runs.
struct Site<'a> {
    backend: &'a Backend,
    folder: &'a Path,
    options: MountOptions,
    begin: &'a dyn Fn() -> Result<()>,
    end: &'a dyn Fn() -> Result<()>,
    /// What the service has been asked for so far.
    asked: &'a dyn Fn() -> u64,
    /// Whether the fault has hit somebody, as far as that can be seen.
    hit: &'a dyn Fn() -> bool,
    /// How often it has.
    hits: &'a dyn Fn() -> u64,
}

/// Runs a cell. In a process of its own: a program that a test starts has copies of all files that the test
/// has open, and closes them as it begins, which waits for mounts that have nothing to do with it.
pub(crate) fn run(kind: &Kind, seed: u64) -> Result<()> {
    match kind.means {
        Means::Relay(_) | Means::Names => over_https(kind, seed),
        Means::Channel(fault) => over_the_channel(kind, fault, seed),
    }
}

fn over_https(kind: &Kind, seed: u64) -> Result<()> {
    let scratch = tree::scratch()?;
    let folder = scratch.path();
    let backend = Backend::start(Service::Embedded)?;
    let store = backend.store().context("an embedded store")?;
    let behind = Arc::clone(store) as Arc<dyn vsp::Backend>;
    let certificates = Certificates::new(&["127.0.0.1", NAME])?;
    let proxy = FaultProxy::start(runtime().handle(), behind, &certificates)?;
    let certificate = folder.join("certificate.pem");
    fs::write(&certificate, certificates.pem())?;
    let mut options = MountOptions {
        // A proxy of the machine has no part in it.
        environment: vec![
            ("SSL_CERT_FILE".into(), certificate.into()),
            ("NO_PROXY".into(), "*".into()),
            ("no_proxy".into(), "*".into()),
        ],
        ..MountOptions::default()
    };
    let mut host = "127.0.0.1";
    let names = match kind.means {
        Means::Names => {
            let names = Names::new(folder)?;
            names.know(true)?;
            host = NAME;
            options.launcher = names.launcher();
            Some(names)
        }
        _ => None,
    };
    let endpoint = format!("https://{host}:{}/{DEV_ACCOUNT}", proxy.addr().port());
    options.endpoint = Some(Url::parse(&endpoint)?);
    let begin = || -> Result<()> {
        match (kind.means, &names) {
            (Means::Relay(rule), _) => proxy.set(rule()),
            (_, Some(names)) => {
                names.know(false)?;
                proxy.cut();
            }
            _ => bail!("not a fault of HTTPS"),
        }
        Ok(())
    };
    let end = || -> Result<()> {
        if let Some(names) = &names {
            names.know(true)?;
        }
        proxy.heal();
        Ok(())
    };
    let fault = match kind.means {
        Means::Relay(rule) => Some(rule().fault),
        _ => None,
    };
    let of_connections = fault == Some(Fault::HandshakeReset);
    // Whoever is refused is not seen.
    let hidden = [None, Some(Fault::Refused)].contains(&fault);
    let hits = || proxy.counters().hits;
    let hit = || hidden || hits() > 0;
    let asked = || {
        let counters = proxy.counters();
        if of_connections {
            counters.connections
        } else {
            counters.requests
        }
    };
    let site = Site {
        backend: &backend,
        folder: names.as_ref().map_or(folder, |names| names.shared.as_path()),
        options,
        begin: &begin,
        end: &end,
        asked: &asked,
        hit: &hit,
        hits: &hits,
    };
    run_at(kind, &site, seed)
}

fn over_the_channel(kind: &Kind, fault: fn(&mut Faults), seed: u64) -> Result<()> {
    let setup = Setup::new(Service::Embedded, setup::Way::Channel)?;
    let device = setup.device()?;
    let begin = || -> Result<()> {
        device.faults().update(fault);
        Ok(())
    };
    let hit = || {
        let (mut as_set, seen) = (Faults::default(), device.counters());
        fault(&mut as_set);
        device.faults().get() != as_set || seen.eagain + seen.enodev > 0
    };
    let end = || -> Result<()> {
        device.faults().reset();
        device.faults().release();
        Ok(())
    };
    let asked = || 0;
    let site = Site {
        backend: setup.backend(),
        folder: setup.scratch(),
        options: setup.options(),
        begin: &begin,
        end: &end,
        asked: &asked,
        hit: &hit,
        hits: &|| 0,
    };
    run_at(kind, &site, seed)
}

/// The cell itself.
fn run_at(kind: &Kind, site: &Site<'_>, seed: u64) -> Result<()> {
    let container = kind.name.replace('_', "-");
    let view = site.backend.create_container(&container)?;
    let dealt = model::deal(seed, kind.rounds, PROGRAMS);
    furnish(&view, kind, dealt.iter().flatten())?;
    let mut options = site.options.clone();
    if let Some(timeout) = kind.timeout {
        options = options.arg("--timeout").arg(timeout);
    }
    let root = site.folder.join("mnt");
    fs::create_dir(&root)?;
    let mount = Mount::start(site.backend, &container, &root, &options)?;
    let left = match during(kind, site, &root, dealt) {
        Ok(left) => left,
        Err(error) => {
            // Whoever still waits is let go, so that the mount can end.
            let _ = (site.end)();
            return Err(error.context(last_lines(&mount)));
        }
    };
    let owed = || -> Result<()> {
        // Before the unmount, which would try it once more.
        for way in left.iter().filter_map(Left::certain) {
            wait_for(&format!("what was written: {}", names_of(way)), PATIENCE, || {
                let there = holds(way, |name| stored(&view, name))?;
                if !there {
                    // Many cells look at the same service.
                    std::thread::sleep(LOOK_AGAIN);
                }
                Ok(there.then_some(()))
            })?;
        }
        Ok(())
    };
    owed().map_err(|error| error.context(last_lines(&mount)))?;
    mount.unmount()?;
    check_all(kind, &left, |name| stored(&view, name)).context("in the service")?;
    let mut known: BTreeSet<String> = furniture(kind).into_iter().map(|(name, _)| name).collect();
    known.extend(
        left.iter()
            .flat_map(|left| &left.ways)
            .flatten()
            .map(|(name, _)| name.clone()),
    );
    known.extend(left.iter().flat_map(|left| left.markers.iter().cloned()));
    let strange: Vec<String> = view
        .blobs()?
        .into_keys()
        .filter(|name| !known.contains(name))
        .collect();
    ensure!(strange.is_empty(), "blobs that nobody made: {strange:?}");

    let mount = Mount::start(site.backend, &container, &root, &options)?;
    check_all(kind, &left, |name| shown(&root.join(name))).context("on the next mount")?;
    for (name, mode) in left.iter().filter_map(|left| left.mode.as_ref()) {
        let now = fs::metadata(root.join(name))?.permissions().mode() & 0o777;
        ensure!(now == *mode, "{name} has the permissions {now:o}, not {mode:o}");
    }
    mount.unmount()?;
    Ok(())
}

/// What happens while the fault lasts; what may be left of it.
fn during(kind: &Kind, site: &Site<'_>, root: &Path, dealt: Vec<Vec<Step>>) -> Result<Vec<Left>> {
    let dealt = dealt
        .into_iter()
        .map(|steps| {
            steps
                .into_iter()
                .map(|step| anyhow::Ok((step.open(root)?, step)))
                .collect::<Result<Vec<_>>>()
        })
        .collect::<Result<Vec<_>>>()?;
    let load = kind.loaded.then(|| Load::new(root, site)).transpose()?;
    (site.begin)()?;
    if let Some(load) = load {
        load.run(site)?;
    }
    // All of them end while the fault lasts.
    let metronome = Metronome::start();
    let (left, waited) = programs(kind, root, dealt)?;
    patient(kind, waited, metronome.stop(), (site.hits)())?;
    ensure!((site.hit)(), "the fault hit nobody: that is no test");
    (site.end)()?;
    Ok(left)
}

/// Programs take their steps side by side, to their ends.
fn programs(
    kind: &Kind,
    root: &Path,
    dealt: Vec<Vec<(Option<Opened>, Step)>>,
) -> Result<(Vec<Left>, Vec<Waited>)> {
    let (sender, results) = channel();
    // Not scoped: one that hangs must not hold the test up, whose end lets it go.
    for steps in dealt {
        let (sender, root, outcome) = (sender.clone(), root.to_owned(), kind.outcome);
        std::thread::spawn(move || {
            for (file, step) in steps {
                // Nobody listens any more once a step has failed.
                let _ = sender.send(step.take(&root, file, &outcome));
            }
        });
    }
    drop(sender);
    let (mut left, mut waited) = (Vec::new(), Vec::new());
    loop {
        match results.recv_timeout(PATIENCE) {
            Ok(one) => {
                let (one, its) = one?;
                left.push(one);
                waited.extend(its);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok((left, waited)),
            Err(RecvTimeoutError::Timeout) => bail!("a step waits still"),
        }
    }
}

/// Nobody waited longer than the table says. `late`: how much later than they should threads of ours went on,
/// on this machine and in this time, at worst. `hits`: how often the fault has hit somebody.
fn patient(kind: &Kind, waited: Vec<Waited>, late: Duration, hits: u64) -> Result<()> {
    let asked = u32::try_from(hits)?;
    let most = |of: &Waited| kind.longest(of.operation, asked) + ALLOWANCE + late * STEPS_OF_AN_OPERATION;
    // Of each what it may, in thousandths.
    let part = |of: &Waited| of.took.as_millis() * 1000 / most(of).as_millis().max(1);
    let longest = waited.iter().max_by_key(|of| part(of)).context("no operation")?;
    let most = most(longest);
    println!(
        "{}: {:?} in {} took {:?}, of {most:?} at most (threads were {late:?} late)",
        kind.name, longest.operation, longest.step, longest.took
    );
    ensure!(
        longest.took <= most,
        "{:?} in {} took {:?}; nobody waits longer than {most:?} (threads were {late:?} late)",
        longest.operation,
        longest.step,
        longest.took
    );
    Ok(())
}

/// Reads that each cost one request, by many at once.
struct Load {
    files: Vec<File>,
    /// Requests that they cost.
    work: f64,
}

impl Load {
    fn new(root: &Path, site: &Site<'_>) -> Result<Self> {
        let files = (0..READERS + SAMPLES)
            .map(|n| {
                let path = root.join(load_name(n));
                // Past the kernel's cache, which would try again by itself.
                let file = File::options()
                    .read(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(&path);
                file.with_context(|| format!("opening {}", path.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        let before = (site.asked)();
        for file in &files[..SAMPLES] {
            file.read_exact_at(&mut [0; READ], 0)?;
        }
        // Of a fault of connections nothing can be counted before: there, a read is one connection.
        let cost = (site.asked)() - before;
        ensure!(cost <= SAMPLES as u64, "{SAMPLES} reads cost {cost} requests");
        Ok(Self {
            files: files.into_iter().skip(SAMPLES).collect(),
            work: READERS as f64,
        })
    }

    /// What is asked for in an outage is hardly more than the work, and one a second.
    fn run(self, site: &Site<'_>) -> Result<()> {
        let (before, began) = ((site.asked)(), Instant::now());
        std::thread::scope(|scope| {
            for file in &self.files {
                // It fails, which is no matter here.
                scope.spawn(|| file.read_exact_at(&mut [0; READ], 0));
            }
        });
        let (asked, took) = ((site.asked)() - before, began.elapsed());
        let most = 1.1 * self.work + RESERVE + took.as_secs_f64() + 1.0;
        ensure!(
            asked as f64 <= most,
            "{asked} requests for the work of {} in {took:?}",
            self.work
        );
        Ok(())
    }
}

fn load_name(n: usize) -> String {
    format!("load/{n}")
}

/// Blobs that no step changes.
fn furniture(kind: &Kind) -> Vec<(String, Vec<u8>)> {
    let load = (0..READERS + SAMPLES).map(|n| (load_name(n), vec![b'l'; READ]));
    let load = load.filter(|_| kind.loaded);
    model::furniture().into_iter().chain(load).collect()
}

fn furnish<'a>(view: &ContainerView, kind: &Kind, steps: impl Iterator<Item = &'a Step>) -> Result<()> {
    for (name, bytes) in furniture(kind) {
        view.write(&name, bytes, &Metadata::new())?;
    }
    for step in steps {
        for (name, bytes) in step.blobs() {
            let mut metadata = Metadata::new();
            if step.is_folder(&name) {
                metadata.insert("hdi_isfolder".into(), "true".into());
            }
            view.write(&name, bytes, &metadata)?;
        }
    }
    Ok(())
}

fn names_of(way: &Way) -> String {
    let names: Vec<&str> = way.iter().map(|(name, _)| name.as_str()).collect();
    names.join(" and ")
}

/// Whether all names of a way have what it says.
fn holds(way: &Way, look: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<bool> {
    for (name, content) in way {
        if look(name)? != *content {
            return Ok(false);
        }
    }
    Ok(true)
}

/// For each step, one of its ways is so; and what no step changes is as it was.
fn check_all(kind: &Kind, left: &[Left], look: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<()> {
    for left in left {
        let mut any = false;
        for way in &left.ways {
            any = any || holds(way, &look)?;
        }
        if !any {
            let mut story = String::new();
            for (name, content) in left.ways.iter().flatten() {
                let (now, length) = (look(name)?, content.as_ref().map(Vec::len));
                let same = now == *content;
                let now = now.map(|now| now.len());
                story.push_str(&format!(
                    "\n{name}: {length:?} bytes, is {now:?} (the same: {same})"
                ));
            }
            bail!("none of the ways in which a step can have gone:{story}");
        }
    }
    for (name, bytes) in furniture(kind) {
        ensure!(
            look(&name)? == Some(bytes),
            "{name} has changed, and nobody did that"
        );
    }
    Ok(())
}

/// What the service has.
fn stored(view: &ContainerView, name: &str) -> Result<Option<Vec<u8>>> {
    match view.read(name) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => match error.downcast_ref::<blob_client::Error>() {
            Some(blob_client::Error::BlobNotFound { .. }) => Ok(None),
            _ => Err(error),
        },
    }
}

/// What a mount shows; a folder is as its marker.
fn shown(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(metadata) if metadata.is_dir() => Ok(Some(Vec::new())),
        other => {
            other.with_context(|| format!("stat of {}", path.display()))?;
            Ok(Some(fs::read(path)?))
        }
    }
}

/// What the program said last.
fn last_lines(mount: &Mount) -> String {
    let output = mount.process().output();
    let lines: Vec<&str> = output.lines().collect();
    let last = &lines[lines.len().saturating_sub(30)..];
    format!("the program's last lines:\n{}\n", last.join("\n"))
}

/// Names of hosts for one program, in a file of its own; and a folder in which it can mount for us all the
/// same.
#[derive(Debug)]
struct Names {
    hosts: PathBuf,
    resolver: PathBuf,
    shared: PathBuf,
}

impl Names {
    fn new(folder: &Path) -> Result<Self> {
        let names = Self {
            hosts: folder.join("hosts"),
            resolver: folder.join("resolv.conf"),
            shared: tree::folder(folder.join("shared"))?,
        };
        // Nobody is there to be asked.
        fs::write(
            &names.resolver,
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        )?;
        let none = None::<&str>;
        mount(Some(&names.shared), &names.shared, none, MsFlags::MS_BIND, none)?;
        mount(none, &names.shared, none, MsFlags::MS_SHARED, none)?;
        Ok(names)
    }

    /// The service's name is known, or not.
    fn know(&self, known: bool) -> Result<()> {
        let service = if known { NAME } else { "" };
        fs::write(&self.hosts, format!("127.0.0.1 localhost {service}\n"))?;
        Ok(())
    }

    /// Starts a program with these names. Of its mounts we see those in the shared folder.
    fn launcher(&self) -> Vec<OsString> {
        let script = "shared=$1 hosts=$2 resolver=$3; shift 3
            awk -v keep=\"$shared\" '/ shared:/ && $5 != keep { print $5 }' /proc/self/mountinfo |
                while read -r at; do mount --make-private \"$at\"; done
            mount --bind \"$hosts\" /etc/hosts && mount --bind \"$resolver\" /etc/resolv.conf && exec \"$@\"";
        let mut launcher: Vec<OsString> = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c"]
            .map(OsString::from)
            .to_vec();
        launcher.extend([script.into(), "sh".into()]);
        launcher.extend([&self.shared, &self.hosts, &self.resolver].map(OsString::from));
        launcher
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.shared, MntFlags::MNT_DETACH) {
            eprintln!("{}: left mounted: {error}", self.shared.display());
        }
    }
}
