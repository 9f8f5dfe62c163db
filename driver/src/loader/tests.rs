//! Every rung on a fake machine: a folder with sysfs and procfs files, and calls that change it as a kernel
//! would.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use tempfile::TempDir;

use super::*;
use crate::channel::{Abi, ChannelError};

const RELEASE: &str = "6.12.1-test-amd64";
const DEVICE: &str = "sys/bus/vmbus/devices/11111111-0000-0000-0000-000000000001";
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// How modprobe is called.
const MODPROBE: &str = "modprobe -b hv_azure_blob async_probe";

/// How the fake kernel behaves.
#[derive(Debug, Clone, Copy)]
struct Behavior {
    load: Result<(), Errno>,
    unload: Result<(), Errno>,
    modprobe: bool,
    /// A node appears when a module is loaded.
    node: bool,
    /// The node knows an ioctl number.
    speaks: bool,
    /// The node may be opened.
    open: bool,
    /// There is a program modprobe.
    programs: bool,
    /// modprobe finds a command in the module's place and says that all is well.
    nothing: bool,
    /// Loading does not come to an end.
    hangs: bool,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            load: Ok(()),
            unload: Ok(()),
            modprobe: true,
            node: true,
            speaks: true,
            open: true,
            programs: true,
            nothing: false,
            hangs: false,
        }
    }
}

#[derive(Debug, Clone)]
struct FakeSystem {
    root: PathBuf,
    behavior: Behavior,
    calls: Arc<Mutex<Vec<String>>>,
}

impl FakeSystem {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn loaded(&self, name: &str) {
        write(&self.root, &format!("sys/module/{name}/refcnt"), "0\n");
        if self.behavior.node {
            write(&self.root, "dev/azure_blob", "");
        }
    }
}

impl System for FakeSystem {
    fn load_module(&self, mut module: &File, how: Insert) -> Result<(), Errno> {
        // From its beginning, whatever was read before: as the kernel does.
        io::Seek::rewind(&mut module).unwrap();
        let mut text = Vec::new();
        io::Read::read_to_end(&mut module, &mut text).unwrap();
        assert!(!text.is_empty());
        // The kernel's own modules hold their name here.
        let call = if how.compressed {
            "finit_module(compressed)"
        } else {
            "finit_module"
        };
        let in_box = [IN_BOX, "hv_vmbus", "hv_helper"]
            .into_iter()
            .find(|name| name.as_bytes() == text);
        let (call, name) = match in_box {
            Some(name) => (format!("{call} {name}"), name),
            None => (call.to_owned(), OURS),
        };
        self.note(call);
        assert_eq!(how.asynchronous, name == OURS || name == IN_BOX, "{name}");
        if self.behavior.hangs {
            // Longer than any test; the thread ends with them.
            std::thread::sleep(Duration::from_secs(3600));
        }
        if self.behavior.load == Err(Errno::EEXIST) {
            // Somebody was quicker.
            self.loaded(name);
        }
        self.behavior.load?;
        if name == OURS || name == IN_BOX {
            self.loaded(name);
        } else {
            write(&self.root, &format!("sys/module/{name}/refcnt"), "0\n");
        }
        Ok(())
    }

    fn unload_module(&self, name: &str) -> Result<(), Errno> {
        self.note(format!("delete_module {name}"));
        self.behavior.unload?;
        fs::remove_dir_all(self.root.join("sys/module").join(name)).unwrap();
        Ok(())
    }

    fn run(&self, root: &Path, program: &str, arguments: &[&str], _: Duration) -> io::Result<Ran> {
        self.note(format!("{program} {}", arguments.join(" ")));
        assert_eq!(root, self.root.join("host"));
        if program == "modprobe" {
            if !self.behavior.programs {
                return Err(io::ErrorKind::NotFound.into());
            }
            if self.behavior.hangs {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if self.behavior.modprobe && !self.behavior.nothing {
                self.loaded(arguments[1]);
            }
            return Ok(Ran {
                success: self.behavior.modprobe,
                output: "modprobe: ERROR: could not insert 'hv_azure_blob': No such device\n".to_owned(),
            });
        }
        // A real make, in the folder where a changed root would find it.
        assert_eq!((program, arguments[1]), ("make", "-C"));
        let output = Command::new("make")
            .arg("-s")
            .arg("-C")
            .arg(inside(root, Path::new(arguments[2])))
            .args(&arguments[3..])
            .output()?;
        Ok(Ran {
            success: output.status.success(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn probe(&self, node: &Path) -> Result<Abi, ChannelError> {
        assert!(node.ends_with("dev/azure_blob"));
        if !self.behavior.open {
            Err(ChannelError::Io {
                call: "open",
                source: Errno::EPERM.into(),
            })
        } else if self.behavior.speaks {
            Ok(Abi::List)
        } else {
            Err(ChannelError::UnknownAbi {
                device: node.display().to_string(),
            })
        }
    }
}

/// A machine that is not offered the device.
struct Machine {
    folder: TempDir,
    behavior: Behavior,
    calls: Arc<Mutex<Vec<String>>>,
    source: Option<PathBuf>,
    skip: Vec<Rung>,
    /// Long, except where a call is to hang.
    load_wait: Duration,
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            folder: TempDir::new().unwrap(),
            behavior: Behavior::default(),
            calls: Arc::default(),
            source: None,
            skip: Vec::new(),
            load_wait: Duration::from_secs(60),
        };
        machine.file("proc/sys/kernel/osrelease", &format!("{RELEASE}\n"));
        machine.file("proc/sys/kernel/random/boot_id", "boot-1\n");
        machine
    }

    /// A machine that is offered the device, without any driver for it.
    fn offered() -> Self {
        let machine = Self::new();
        machine.file(&format!("host/lib/modules/{RELEASE}/modules.dep"), "");
        fs::create_dir_all(machine.config().prebuilt).unwrap();
        machine.file(
            "sys/bus/vmbus/devices/other/class_id",
            "{f8615163-df3e-46c5-913f-f2d2f965ed0e}\n",
        );
        machine.file(&format!("{DEVICE}/class_id"), &format!("{{{CLASS_ID}}}\n"));
        machine
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        write(self.root(), path, text);
        self
    }

    fn in_box(self) -> Self {
        self.file(
            &format!("host/lib/modules/{RELEASE}/modules.dep"),
            "kernel/drivers/hv/hv_balloon.ko.zst: kernel/drivers/hv/hv_vmbus.ko.zst\n\
             kernel/drivers/hv/hv_azure_blob.ko.zst: kernel/drivers/hv/hv_vmbus.ko.zst\n",
        );
        self
    }

    fn prebuilt(self, signer: &str) -> Self {
        self.file(&format!("prebuilt/{RELEASE}/azb_vsc.ko"), "module");
        let mut file = File::open(self.root().join(format!("prebuilt/{RELEASE}/azb_vsc.ko"))).unwrap();
        let digest = manifest::digest(&mut file).unwrap();
        self.manifest(RELEASE, RELEASE, &digest, signer)
    }

    fn manifest(self, release: &str, vermagic: &str, digest: &str, signer: &str) -> Self {
        self.file(
            &format!("prebuilt/{RELEASE}/azb_vsc.json"),
            &format!(
                r#"{{"release":"{release}","vermagic":"{vermagic} SMP",
                    "sha256":"{digest}","signer":{signer}}}"#
            ),
        );
        self
    }

    fn config(&self) -> LoaderConfig {
        LoaderConfig {
            root: self.root().to_owned(),
            host_root: self.root().join("host"),
            prebuilt: self.root().join("prebuilt"),
            source: self.source.clone(),
            skip: self.skip.clone(),
            state: self.root().join("run"),
            node_wait: Duration::from_millis(60),
            lock_wait: Duration::from_millis(60),
            load_wait: self.load_wait,
            ..LoaderConfig::default()
        }
    }

    fn loader(&self) -> Loader<FakeSystem> {
        let system = FakeSystem {
            root: self.root().to_owned(),
            behavior: self.behavior,
            calls: Arc::clone(&self.calls),
        };
        Loader::with_system(self.config(), system)
    }

    fn load(&self) -> Report {
        self.loader().load().unwrap()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn state(&self) -> Vec<LoadedModule> {
        state::read(&self.config()).unwrap()
    }

    /// The one module that is remembered.
    fn remembered(&self) -> LoadedModule {
        let [module] = self.state().try_into().unwrap();
        module
    }
}

fn ready() -> Outcome {
    Outcome::Ready { abi: Abi::List }
}

fn loaded(module: &str) -> ModuleStep {
    ModuleStep::Loaded {
        module: module.to_owned(),
        abi: Abi::List,
    }
}

/// The step of a rung that was tried.
fn step(report: &Report, rung: Rung) -> ModuleStep {
    report
        .steps
        .iter()
        .find_map(|step| match (rung, step) {
            (Rung::InBox, Step::InBox(step))
            | (Rung::Prebuilt, Step::Prebuilt(step))
            | (Rung::Build, Step::Build(step)) => Some(step.clone()),
            _ => None,
        })
        .unwrap()
}

#[test]
fn rung_0_a_machine_without_the_bus_is_left_alone() {
    let machine = Machine::new().in_box().prebuilt("null");
    let report = machine.load();
    assert_eq!(report.outcome, Outcome::NotOffered { vmbus: false });
    assert_eq!(report.code(), "NotOffered");
    assert!(report.steps.is_empty());
    assert!(machine.calls().is_empty());
    assert!(!machine.config().state.exists());
    let sentence = report.to_string();
    assert!(
        sentence.starts_with("not offered:") && !sentence.contains('\n'),
        "{sentence}"
    );
}

#[test]
fn rung_0_other_devices_of_the_bus_are_not_ours() {
    let machine = Machine::new().in_box().prebuilt("null");
    machine.file(
        "sys/bus/vmbus/devices/other/class_id",
        "{f8615163-df3e-46c5-913f-f2d2f965ed0e}\n",
    );
    assert_eq!(machine.load().outcome, Outcome::NotOffered { vmbus: true });
    assert!(machine.calls().is_empty());
}

#[test]
fn rung_1_a_node_that_answers_is_used_as_it_is() {
    let machine = Machine::offered().in_box().prebuilt("null");
    machine.file("dev/azure_blob", "");
    let report = machine.load();
    assert_eq!(report.outcome, ready());
    assert_eq!(report.code(), "NodePresent");
    assert_eq!(report.steps, [Step::Node(NodeStep::Present { abi: Abi::List })]);
    assert!(machine.calls().is_empty());
    assert_eq!(machine.state(), []);
}

#[test]
fn rung_1_a_node_that_nobody_understands_is_reported() {
    let mut machine = Machine::offered();
    machine.file("dev/azure_blob", "");
    machine.behavior.speaks = false;
    let report = machine.load();
    assert_eq!(report.outcome, Outcome::Https);
    let Some(Step::Node(NodeStep::Unusable { reason })) = report.steps.first() else {
        panic!("{report:?}");
    };
    assert!(reason.contains("neither known ABI"), "{reason}");
}

#[test]
fn rung_2_the_kernels_own_module_comes_first() {
    let machine = Machine::offered().in_box().prebuilt("null");
    let report = machine.load();
    assert_eq!(report.outcome, ready());
    assert_eq!(report.code(), "InBox");
    assert_eq!(step(&report, Rung::InBox), loaded(IN_BOX));
    assert_eq!(machine.calls(), [MODPROBE]);
    let state = machine.remembered();
    assert_eq!((state.module.as_str(), state.digest), (IN_BOX, None));
}

#[test]
fn rung_2_a_similar_name_is_another_module() {
    let machine = Machine::offered();
    machine.file(
        &format!("host/lib/modules/{RELEASE}/modules.dep"),
        "kernel/hv_azure_blob_test.ko:\nkernel/xhv_azure_blob.ko:\nkernel/other.ko: \
        kernel/hv_azure_blob.ko\n",
    );
    let report = machine.load();
    assert_eq!(step(&report, Rung::InBox), ModuleStep::None);
    assert!(machine.calls().is_empty());
}

#[test]
fn rung_2_what_modprobe_says_is_kept_and_the_next_rung_tried() {
    let mut machine = Machine::offered().in_box().prebuilt("null");
    machine.behavior.modprobe = false;
    let report = machine.load();
    assert_eq!(report.outcome, ready());
    assert_eq!(
        step(&report, Rung::InBox),
        ModuleStep::Refused {
            reason: "modprobe: ERROR: could not insert 'hv_azure_blob': No such device".to_owned()
        }
    );
    assert_eq!(step(&report, Rung::Prebuilt), loaded(OURS));
}

/// An image that holds one program has no modprobe.
#[test]
fn rung_2_works_without_modprobe() {
    let mut machine = Machine::offered();
    machine.behavior.programs = false;
    machine.file(
        &format!("host/lib/modules/{RELEASE}/modules.dep"),
        "hv/other.ko:\nhv/hv_azure_blob.ko: hv/hv-helper.ko hv/hv_vmbus.ko\n",
    );
    machine.file(&format!("host/lib/modules/{RELEASE}/hv/hv_azure_blob.ko"), IN_BOX);
    machine.file(
        &format!("host/lib/modules/{RELEASE}/hv/hv-helper.ko"),
        "hv_helper",
    );
    machine.file(&format!("host/lib/modules/{RELEASE}/hv/hv_vmbus.ko"), "hv_vmbus");
    // In the kernel already: not loaded once more.
    machine.file("sys/module/hv_vmbus/refcnt", "3\n");
    let report = machine.load();
    assert_eq!(step(&report, Rung::InBox), loaded(IN_BOX));
    assert_eq!(report.code(), "InBox");
    assert_eq!(
        machine.calls(),
        [MODPROBE, "finit_module hv_helper", "finit_module hv_azure_blob"]
    );
    assert_eq!(machine.remembered().module, IN_BOX);
}

#[test]
fn rung_2_a_compressed_module_is_unpacked_by_the_kernel_or_refused_with_the_reason() {
    let mut machine = Machine::offered().in_box();
    machine.behavior.programs = false;
    for name in ["hv_vmbus", IN_BOX] {
        machine.file(
            &format!("host/lib/modules/{RELEASE}/kernel/drivers/hv/{name}.ko.zst"),
            name,
        );
    }
    machine.behavior.load = Err(Errno::EOPNOTSUPP);
    let ModuleStep::Refused { reason } = step(&machine.load(), Rung::InBox) else {
        panic!("not refused");
    };
    assert!(reason.contains("hv_vmbus: its file is compressed"), "{reason}");
    machine.calls();

    machine.behavior.load = Ok(());
    assert_eq!(step(&machine.load(), Rung::InBox), loaded(IN_BOX));
    assert_eq!(
        machine.calls()[1..],
        [
            "finit_module(compressed) hv_vmbus",
            "finit_module(compressed) hv_azure_blob"
        ]
    );
}

/// The chart's init container has CAP_SYS_MODULE and may not open devices.
#[test]
fn a_node_that_this_process_may_not_open_is_left_to_others() {
    let mut machine = Machine::offered().in_box();
    machine.behavior.open = false;
    let report = machine.load();
    assert_eq!((&report.outcome, report.code()), (&Outcome::Closed, "InBox"));
    assert_eq!(machine.calls(), [MODPROBE]);
    assert!(
        report
            .to_string()
            .starts_with("in place: hv_azure_blob is loaded"),
        "{report}"
    );

    // Again, with the node there: nothing is loaded.
    let report = machine.load();
    assert_eq!(
        (&report.outcome, report.code()),
        (&Outcome::Closed, "NodePresent")
    );
    assert!(machine.calls().is_empty());
}

#[test]
fn rung_3_a_prebuilt_module_for_exactly_this_kernel_is_loaded() {
    let machine = Machine::offered().prebuilt("null");
    let report = machine.load();
    assert_eq!(report.outcome, ready());
    assert_eq!(report.code(), "Prebuilt");
    assert_eq!(machine.calls(), ["finit_module"]);
    let state = machine.remembered();
    assert_eq!((state.module.as_str(), state.release.as_str()), (OURS, RELEASE));
    assert_eq!(state.digest.unwrap().len(), 64);

    // Once more: the node is there, and nothing is done.
    let report = machine.load();
    assert_eq!(report.code(), "NodePresent");
    assert!(machine.calls().is_empty());
    assert_eq!(machine.state().len(), 1);
}

#[test]
fn rung_3_none_for_this_kernel() {
    let machine = Machine::offered();
    machine.file("prebuilt/6.12.1-other/azb_vsc.json", "{}");
    assert_eq!(step(&machine.load(), Rung::Prebuilt), ModuleStep::None);
}

#[test]
fn rung_3_a_file_or_manifest_that_does_not_fit_is_not_loaded() {
    for (machine, expected) in [
        (
            Machine::offered()
                .prebuilt("null")
                .manifest(RELEASE, RELEASE, &"0".repeat(64), "null"),
            "its manifest says 000",
        ),
        (
            Machine::offered()
                .prebuilt("null")
                .manifest("6.1.0-other", "6.1.0-other", "00", "null"),
            "is for kernel 6.1.0-other",
        ),
        (
            Machine::offered()
                .prebuilt("null")
                .manifest(RELEASE, "6.1.0-other", "00", "null"),
            "is for kernel",
        ),
        (
            Machine::offered()
                .prebuilt("null")
                .manifest(RELEASE, RELEASE, "00", "7"),
            "azb_vsc.json",
        ),
        (
            Machine::offered().manifest(RELEASE, RELEASE, "00", "null"),
            "azb_vsc.ko",
        ),
    ] {
        let report = machine.load();
        let ModuleStep::Unfit { problem } = step(&report, Rung::Prebuilt) else {
            panic!("{report:?}");
        };
        assert!(problem.contains(expected), "{problem}");
        assert!(machine.calls().is_empty());
        assert_eq!(machine.state(), []);
    }
}

/// A file that restricts the kernel, what it holds, and what it is then called.
const RESTRICTIONS: [(&str, &str, Restriction); 5] = [
    (
        "sys/kernel/security/lockdown",
        "none [integrity] confidentiality\n",
        Restriction::Lockdown,
    ),
    (
        "sys/kernel/security/lockdown",
        "none integrity [confidentiality]\n",
        Restriction::Lockdown,
    ),
    (
        "sys/module/module/parameters/sig_enforce",
        "Y\n",
        Restriction::SigEnforce,
    ),
    (SECURE_BOOT, "\x06\0\0\0\x01", Restriction::SecureBoot),
    (
        "proc/sys/kernel/modules_disabled",
        "1\n",
        Restriction::ModulesDisabled,
    ),
];

#[test]
fn rung_3_an_unsigned_module_is_not_tried_where_the_kernel_would_refuse_it() {
    for (path, text, by) in RESTRICTIONS {
        let machine = Machine::offered().prebuilt("null");
        machine.file(path, text);
        let report = machine.load();
        assert_eq!(
            step(&report, Rung::Prebuilt),
            ModuleStep::Forbidden { by },
            "{path}"
        );
        assert_eq!(report.outcome, Outcome::Https);
        assert!(machine.calls().is_empty(), "{path}");
        assert!(report.to_string().contains(&by.to_string()));
    }
}

#[test]
fn rung_3_a_signed_module_is_tried_unless_modules_are_off() {
    for (path, text, by) in RESTRICTIONS {
        let machine = Machine::offered().prebuilt(r#""Build key""#);
        machine.file(path, text);
        let step = step(&machine.load(), Rung::Prebuilt);
        if by == Restriction::ModulesDisabled {
            assert_eq!(step, ModuleStep::Forbidden { by });
        } else {
            assert_eq!(step, loaded(OURS), "{path}");
        }
    }
}

#[test]
fn rung_2_is_signed_by_the_distribution_and_stopped_only_when_modules_are_off() {
    for (path, text, by) in RESTRICTIONS {
        let machine = Machine::offered().in_box();
        machine.file(path, text);
        let step = step(&machine.load(), Rung::InBox);
        if by == Restriction::ModulesDisabled {
            assert_eq!(step, ModuleStep::Forbidden { by });
        } else {
            assert_eq!(step, loaded(IN_BOX), "{path}");
        }
    }
}

#[test]
fn restrictions_that_are_off_do_not_restrict() {
    let machine = Machine::offered().prebuilt("null");
    machine
        .file(
            "sys/kernel/security/lockdown",
            "[none] integrity confidentiality\n",
        )
        .file("sys/module/module/parameters/sig_enforce", "N\n")
        .file(SECURE_BOOT, "\x06\0\0\0\0")
        .file("proc/sys/kernel/modules_disabled", "0\n");
    assert_eq!(machine.load().outcome, ready());
}

#[test]
fn rung_3_the_kernels_refusal_is_kept() {
    let mut machine = Machine::offered().prebuilt("null");
    machine.behavior.load = Err(Errno::ENOEXEC);
    let report = machine.load();
    assert_eq!(
        step(&report, Rung::Prebuilt),
        ModuleStep::Refused {
            reason: "azb_vsc: Exec format error".to_owned()
        }
    );
    assert_eq!(report.code(), "NoModule");
    assert!(!report.is_good());
    assert_eq!(machine.state(), []);
}

#[test]
fn rung_3_a_refusal_of_the_signature_is_told_as_that() {
    for (errno, said) in [
        (Errno::EKEYREJECTED, "Key was rejected by service"),
        (Errno::ENOKEY, "Required key not available"),
    ] {
        let mut machine = Machine::offered().prebuilt(r#""Build key""#);
        machine.behavior.load = Err(errno);
        let report = machine.load();
        assert_eq!(
            step(&report, Rung::Prebuilt),
            ModuleStep::Signature {
                reason: format!("azb_vsc: {said}")
            }
        );
        assert!(report.to_string().contains("Secure Boot"), "{report}");
    }
}

/// EPERM has several causes; what is said depends on what can be seen of them.
#[test]
fn rung_3_a_permission_denied_is_put_down_to_its_cause() {
    let refusal = |files: &[(&str, &str)]| {
        let mut machine = Machine::offered().prebuilt(r#""Build key""#);
        machine.behavior.load = Err(Errno::EPERM);
        for (path, text) in files {
            machine.file(path, text);
        }
        step(&machine.load(), Rung::Prebuilt)
    };
    let lockdown = (
        "sys/kernel/security/lockdown",
        "none [integrity] confidentiality\n",
    );
    let full = ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
    let without = ("proc/self/status", "CapEff:\t00000000a80425fb\n");
    assert!(matches!(refusal(&[lockdown, full]), ModuleStep::Signature { .. }));
    assert!(matches!(refusal(&[lockdown]), ModuleStep::Signature { .. }));
    let ModuleStep::Refused { reason } = refusal(&[full]) else {
        panic!("nothing wants a signature here");
    };
    assert_eq!(reason, "azb_vsc: Operation not permitted");
    let ModuleStep::Refused { reason } = refusal(&[lockdown, without]) else {
        panic!("the process may not load modules");
    };
    assert!(reason.contains("CAP_SYS_MODULE"), "{reason}");
}

/// A container runtime covers folders, and a policy forbids reading: both are no proof that nothing
/// restricts.
#[test]
fn restrictions_that_cannot_be_read_are_told() {
    let mut machine = Machine::offered().prebuilt("null");
    machine.behavior.load = Err(Errno::EPERM);
    fs::create_dir_all(machine.root().join("sys/firmware")).unwrap();
    fs::create_dir_all(machine.root().join("sys/kernel/security")).unwrap();
    // Not a file: an error that is not "not found", whoever runs the test.
    fs::create_dir_all(machine.root().join("sys/module/module/parameters/sig_enforce")).unwrap();
    let unread = machine.loader().status().unwrap().unread;
    assert_eq!(
        unread
            .iter()
            .map(|unread| unread.path.as_str())
            .collect::<Vec<_>>(),
        [
            "sys/kernel/security/lockdown",
            "sys/module/module/parameters/sig_enforce",
            SECURE_BOOT,
        ]
    );
    assert_eq!(unread[0].reason, "/sys/kernel/security is empty here");
    assert_eq!(unread[2].reason, "/sys/firmware is empty here");
    let report = machine.load();
    assert_eq!(report.unread, unread);
    assert!(
        matches!(step(&report, Rung::Prebuilt), ModuleStep::Signature { .. }),
        "{report}"
    );
    assert!(report.to_string().contains("could not be read"), "{report}");
    let text = machine.loader().status().unwrap().to_string();
    assert!(
        text.contains("not known, /sys/kernel/security/lockdown"),
        "{text}"
    );

    // A folder with something in it is what it seems to be, and so is one that is not there.
    let machine = Machine::offered();
    machine
        .file("sys/firmware/acpi/tables", "")
        .file("sys/kernel/security/lsm", "");
    assert_eq!(machine.loader().status().unwrap().unread, []);
}

#[test]
fn a_module_without_a_node_is_reported_and_remembered() {
    let mut machine = Machine::offered().prebuilt("null");
    machine.behavior.node = false;
    let report = machine.load();
    assert_eq!(
        step(&report, Rung::Prebuilt),
        ModuleStep::NoNode {
            module: OURS.to_owned()
        }
    );
    assert_eq!(machine.remembered().module, OURS);
    // It is not loaded twice.
    machine.calls();
    machine.load();
    assert!(machine.calls().is_empty());
}

#[test]
fn a_device_of_another_driver_is_left_to_it() {
    let machine = Machine::offered().in_box().prebuilt("null");
    fs::create_dir_all(machine.root().join("sys/bus/vmbus/drivers/uio_hv_generic")).unwrap();
    symlink(
        "../../drivers/uio_hv_generic",
        machine.root().join(DEVICE).join("driver"),
    )
    .unwrap();
    let report = machine.load();
    let taken = ModuleStep::Taken {
        driver: "uio_hv_generic".to_owned(),
    };
    assert_eq!(step(&report, Rung::InBox), taken);
    assert_eq!(step(&report, Rung::Prebuilt), taken);
    assert!(machine.calls().is_empty());
}

#[test]
fn rung_4_is_off_by_default() {
    let machine = Machine::offered();
    assert_eq!(step(&machine.load(), Rung::Build), ModuleStep::Off);
}

fn with_source(makefile: &str) -> Machine {
    let mut machine = Machine::offered();
    machine.file("source/Makefile", makefile);
    machine.file("source/include/x.h", "");
    machine.source = Some(machine.root().join("source"));
    machine
}

#[test]
fn rung_4_builds_against_the_headers_of_the_node() {
    let machine = with_source("modules: include/x.h\n\techo $(KDIR) >azb_vsc.ko\n");
    machine.file("host/usr/src/linux-headers/Makefile", "");
    fs::create_dir_all(machine.root().join(format!("host/lib/modules/{RELEASE}"))).unwrap();
    symlink(
        "/usr/src/linux-headers",
        machine.root().join(format!("host/lib/modules/{RELEASE}/build")),
    )
    .unwrap();
    let report = machine.load();
    assert_eq!(step(&report, Rung::Build), loaded(OURS));
    assert_eq!(report.code(), "Built");
    let calls = machine.calls();
    assert!(
        calls[0].ends_with(&format!("KDIR=/lib/modules/{RELEASE}/build modules")),
        "{calls:?}"
    );
    assert_eq!(calls[1], "finit_module");
    assert!(machine.remembered().digest.is_some());
}

#[test]
fn rung_4_without_headers_there_is_nothing_to_build() {
    let machine = with_source("modules:\n\techo >azb_vsc.ko\n");
    assert_eq!(step(&machine.load(), Rung::Build), ModuleStep::None);
    assert!(machine.calls().is_empty());
}

#[test]
fn rung_4_a_failed_build_tells_its_last_lines() {
    let machine = with_source("modules:\n\t@echo 'azb_main.c:1: error: no such kernel' >&2; exit 1\n");
    machine.file(&format!("host/lib/modules/{RELEASE}/build/Makefile"), "");
    let report = machine.load();
    let ModuleStep::BuildFailed { output } = step(&report, Rung::Build) else {
        panic!("{report:?}");
    };
    assert!(output.contains("no such kernel"), "{output}");
}

#[test]
fn one_loader_at_a_time() {
    let machine = Machine::offered().prebuilt("null");
    let held = Lock::take(&machine.config()).unwrap();
    let report = machine.load();
    assert!(matches!(report.outcome, Outcome::Locked { .. }), "{report}");
    assert_eq!((report.code(), report.is_good()), ("Locked", false));
    let error = machine.loader().unload().unwrap_err();
    assert!(matches!(error, LoaderError::Locked { .. }), "{error}");
    assert!(machine.calls().is_empty());
    drop(held);
    assert_eq!(machine.load().outcome, ready());
}

#[test]
fn loaders_that_start_together_load_once() {
    let machine = Machine::offered().prebuilt("null");
    let mut config = machine.config();
    config.lock_wait = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|_| {
                let system = machine.loader().system;
                let config = config.clone();
                scope.spawn(move || Loader::with_system(config, system).load().unwrap())
            })
            .collect();
        for run in runs {
            assert_eq!(run.join().unwrap().outcome, ready());
        }
    });
    assert_eq!(machine.calls(), ["finit_module"]);
}

#[test]
fn the_state_of_another_start_or_a_broken_one_counts_as_none() {
    let machine = Machine::offered().prebuilt("null");
    machine.load();
    assert_eq!(machine.state().len(), 1);
    machine.file("proc/sys/kernel/random/boot_id", "boot-2\n");
    assert_eq!(machine.state(), []);
    machine.file("run/driver.json", "{");
    assert_eq!(machine.state(), []);
}

#[test]
fn unload_takes_away_only_what_load_has_brought() {
    let machine = Machine::offered().prebuilt("null");
    let unload = || machine.loader().unload().unwrap();
    assert_eq!(unload().modules, []);
    assert!(unload().is_good());

    machine.file("sys/module/azb_vsc/refcnt", "0\n");
    assert_eq!(
        unload().modules,
        [Unloaded::NotOurs {
            module: OURS.to_owned()
        }]
    );
    assert!(!unload().is_good());
    assert!(machine.calls().is_empty());
    fs::remove_dir_all(machine.root().join("sys/module/azb_vsc")).unwrap();

    machine.load();
    machine.calls();
    let done = unload();
    assert_eq!(
        done.modules,
        [Unloaded::Done {
            module: OURS.to_owned()
        }]
    );
    assert!(done.is_good());
    assert_eq!(machine.calls(), ["delete_module azb_vsc"]);
    assert_eq!(machine.state(), []);
}

/// The kernel's own module brings no node, so ours is loaded as well: both are remembered, and both are taken
/// away.
#[test]
fn two_modules_are_both_remembered() {
    let mut machine = Machine::offered().in_box().prebuilt("null");
    machine.behavior.node = false;
    let report = machine.load();
    let no_node = |module: &str| ModuleStep::NoNode {
        module: module.to_owned(),
    };
    assert_eq!(step(&report, Rung::InBox), no_node(IN_BOX));
    assert_eq!(step(&report, Rung::Prebuilt), no_node(OURS));
    let names: Vec<String> = machine.state().into_iter().map(|known| known.module).collect();
    assert_eq!(names, [IN_BOX, OURS]);
    machine.calls();
    let done = |module: &str| Unloaded::Done {
        module: module.to_owned(),
    };
    assert_eq!(
        machine.loader().unload().unwrap().modules,
        [done(OURS), done(IN_BOX)]
    );
    assert_eq!(
        machine.calls(),
        ["delete_module azb_vsc", "delete_module hv_azure_blob"]
    );
    assert_eq!(machine.state(), []);
}

/// A module that somebody else loads at the same moment is his.
#[test]
fn a_module_that_was_there_first_is_not_ours() {
    let mut machine = Machine::offered().prebuilt("null");
    machine.behavior.load = Err(Errno::EEXIST);
    assert_eq!(step(&machine.load(), Rung::Prebuilt), loaded(OURS));
    assert_eq!(machine.state(), []);
    assert_eq!(
        machine.loader().unload().unwrap().modules,
        [Unloaded::NotOurs {
            module: OURS.to_owned()
        }]
    );
}

#[test]
fn a_module_that_has_gone_by_itself_is_forgotten() {
    let machine = Machine::offered().prebuilt("null");
    machine.load();
    fs::remove_dir_all(machine.root().join("sys/module/azb_vsc")).unwrap();
    assert_eq!(machine.loader().unload().unwrap().modules, []);
    assert_eq!(machine.state(), []);
}

#[test]
fn another_file_than_the_one_that_was_loaded_is_told() {
    let machine = Machine::offered().prebuilt("null");
    assert_eq!(machine.load().outdated, None);
    assert_eq!(machine.load().outdated, None, "the same file");
    let before = machine.remembered().digest.unwrap();

    machine.file(&format!("prebuilt/{RELEASE}/azb_vsc.ko"), "another");
    let machine = machine.manifest(RELEASE, RELEASE, &"ab".repeat(32), "null");
    let expected = Some(Outdated {
        module: OURS.to_owned(),
        loaded: before,
        prebuilt: "ab".repeat(32),
    });
    let report = machine.load();
    assert_eq!((report.code(), &report.outdated), ("NodePresent", &expected));
    assert!(report.to_string().contains("driver unload"), "{report}");
    let status = machine.loader().status().unwrap();
    assert_eq!(status.outdated, expected);
    assert!(status.to_string().contains("outdated: azb_vsc"), "{status}");

    machine.loader().unload().unwrap();
    assert_eq!(machine.loader().status().unwrap().outdated, None);
}

/// A module whose loading hangs must not hang the container that waits for the loader.
#[test]
fn loading_that_hangs_is_left_behind() {
    let mut machine = Machine::offered().prebuilt("null");
    machine.behavior.hangs = true;
    machine.load_wait = Duration::from_millis(50);
    machine.source = Some(machine.root().join("source"));
    let report = machine.load();
    assert_eq!(step(&report, Rung::Prebuilt), ModuleStep::TimedOut { seconds: 0 });
    assert_eq!(
        (&report.outcome, report.code(), report.is_good()),
        (&Outcome::Https, "TimedOut", false)
    );
    // It may still come: nothing else is tried, and it is ours to unload.
    assert!(
        !report.steps.iter().any(|step| matches!(step, Step::Build(_))),
        "{report}"
    );
    assert_eq!(machine.remembered().module, OURS);
}

#[test]
fn a_modprobe_that_hangs_ends_the_attempt() {
    let mut machine = Machine::offered().in_box().prebuilt("null");
    machine.behavior.hangs = true;
    let report = machine.load();
    assert_eq!(step(&report, Rung::InBox), ModuleStep::TimedOut { seconds: 60 });
    assert_eq!(report.code(), "TimedOut");
    assert_eq!(machine.calls(), [MODPROBE]);
    assert_eq!(machine.remembered().module, IN_BOX);
}

#[test]
fn rungs_can_be_left_out() {
    let mut machine = Machine::offered().in_box().prebuilt("null");
    machine.skip = vec![Rung::InBox];
    let report = machine.load();
    assert_eq!(step(&report, Rung::InBox), ModuleStep::Off);
    assert_eq!(step(&report, Rung::Prebuilt), loaded(OURS));
    assert_eq!(machine.calls(), ["finit_module"]);

    let mut machine = Machine::offered().in_box().prebuilt("null");
    machine.skip = vec![Rung::InBox, Rung::Prebuilt];
    assert_eq!(machine.load().outcome, Outcome::Https);
    assert!(machine.calls().is_empty());
}

#[test]
fn rung_2_the_machines_settings_are_obeyed() {
    for (path, text, named) in [
        (
            "host/etc/modprobe.d/blob.conf",
            "# why\nblacklist hv-azure-blob\n",
            "blob.conf: blacklist hv-azure-blob",
        ),
        (
            "host/usr/lib/modprobe.d/blob.conf",
            "install hv_azure_blob /bin/false\n",
            "blob.conf: install",
        ),
        (
            "proc/cmdline",
            "quiet module_blacklist=floppy,hv_azure_blob\n",
            "module_blacklist on the kernel's command line",
        ),
    ] {
        for programs in [true, false] {
            let mut machine = Machine::offered().in_box();
            machine.behavior.programs = programs;
            machine.file(path, text);
            let ModuleStep::SwitchedOff { by } = step(&machine.load(), Rung::InBox) else {
                panic!("{text:?} is not obeyed");
            };
            assert!(by.contains(named), "{by}");
            assert!(machine.calls().is_empty());
        }
    }
    // Comments, other modules, files of another kind, a setting of another command.
    let machine = Machine::offered().in_box();
    machine
        .file(
            "host/etc/modprobe.d/a.conf",
            "#blacklist hv_azure_blob\nblacklist hv_azure\n",
        )
        .file("host/etc/modprobe.d/b.conf.bak", "blacklist hv_azure_blob\n")
        .file("host/etc/modprobe.d/c.conf", "options hv_azure_blob x=1\n")
        .file("proc/cmdline", "xmodule_blacklist=hv_azure_blob\n");
    assert_eq!(step(&machine.load(), Rung::InBox), loaded(IN_BOX));
}

/// modprobe succeeds also when a setting keeps it from loading anything.
#[test]
fn rung_2_a_modprobe_that_loads_nothing_is_not_believed() {
    let mut machine = Machine::offered().in_box();
    machine.behavior.nothing = true;
    let report = machine.load();
    assert!(
        matches!(step(&report, Rung::InBox), ModuleStep::SwitchedOff { .. }),
        "{report}"
    );
    assert_eq!(machine.state(), []);
}

/// A container that does not have the folders must not say that there is nothing in them.
#[test]
fn folders_that_cannot_be_seen_are_not_empty() {
    let machine = Machine::offered();
    fs::remove_dir_all(machine.root().join("host")).unwrap();
    fs::remove_dir_all(machine.config().prebuilt).unwrap();
    let status = machine.loader().status().unwrap();
    assert_eq!((status.in_box, status.prebuilt), (None, None));
    assert!(
        status.problem().unwrap().contains("cannot be seen from here"),
        "{:?}",
        status.problem()
    );
    let report = machine.load();
    for rung in [Rung::InBox, Rung::Prebuilt] {
        assert!(
            matches!(step(&report, rung), ModuleStep::Unseen { .. }),
            "{report}"
        );
    }
}

/// What was loaded serves, whether it can be noted or not.
#[test]
fn a_state_that_cannot_be_written_keeps_nobody_from_the_device() {
    let machine = Machine::offered().prebuilt("null");
    // A folder in the place of the file.
    fs::create_dir_all(machine.config().state.join("driver.json.new")).unwrap();
    assert_eq!(machine.load().outcome, ready());
    assert_eq!(machine.state(), []);
}

#[test]
fn a_module_in_use_is_never_unloaded() {
    let mut machine = Machine::offered().prebuilt("null");
    machine.load();
    machine.calls();
    machine.file("sys/module/azb_vsc/refcnt", "2\n");
    let in_use = |users| {
        [Unloaded::InUse {
            module: OURS.to_owned(),
            users,
        }]
    };
    assert_eq!(machine.loader().unload().unwrap().modules, in_use(2));
    assert!(machine.calls().is_empty(), "it was not even tried");

    // Opened between our look and the call: the kernel refuses.
    machine.file("sys/module/azb_vsc/refcnt", "0\n");
    machine.behavior.unload = Err(Errno::EWOULDBLOCK);
    assert_eq!(machine.loader().unload().unwrap().modules, in_use(0));
    assert_eq!(machine.state().len(), 1);

    machine.behavior.unload = Err(Errno::EPERM);
    assert!(matches!(
        machine.loader().unload().unwrap().modules[..],
        [Unloaded::Refused { .. }]
    ));
}

const ORPHAN: &str = "sys/bus/vmbus/devices/d4573da2-2caa-4711-a8f9-bbabf4ee9685";

#[test]
fn the_companion_device_is_kept_from_drivers() {
    let machine = Machine::offered();
    machine
        .file(
            &format!("{ORPHAN}/device_id"),
            "{d4573da2-2caa-4711-a8f9-bbabf4ee9685}\n",
        )
        .file(&format!("{ORPHAN}/driver_override"), "(null)\n");
    assert_eq!(machine.loader().status().unwrap().orphan, Orphan::Free);
    assert_eq!(machine.load().orphan, Orphan::Kept);
    assert_eq!(machine.loader().status().unwrap().orphan, Orphan::Kept);

    symlink("../../drivers/hv_pci", machine.root().join(ORPHAN).join("driver")).unwrap();
    assert_eq!(
        machine.load().orphan,
        Orphan::Bound {
            driver: "hv_pci".to_owned()
        }
    );
}

#[test]
fn a_companion_device_that_cannot_be_kept_is_told() {
    let machine = Machine::offered().prebuilt("null");
    machine.file(
        &format!("{ORPHAN}/device_id"),
        "{d4573da2-2caa-4711-a8f9-bbabf4ee9685}\n",
    );
    // Not a file: it cannot be written, whoever runs the test.
    fs::create_dir_all(machine.root().join(ORPHAN).join("driver_override")).unwrap();
    let report = machine.load();
    assert_eq!(report.outcome, ready());
    let text = report.to_string();
    assert!(
        text.contains("companion PCI device: could not be kept from drivers"),
        "{text}"
    );
}

#[test]
fn the_companion_device_is_not_touched_without_the_device() {
    let machine = Machine::new();
    machine
        .file(
            &format!("{ORPHAN}/device_id"),
            "{d4573da2-2caa-4711-a8f9-bbabf4ee9685}\n",
        )
        .file(&format!("{ORPHAN}/driver_override"), "(null)\n");
    machine.load();
    let text = fs::read_to_string(machine.root().join(ORPHAN).join("driver_override")).unwrap();
    assert_eq!(text, "(null)\n");
    assert_eq!(Machine::offered().load().orphan, Orphan::Absent);
}

#[test]
fn status_looks_and_does_not_touch() {
    let machine = Machine::offered().in_box().prebuilt("null");
    machine.file("sys/module/module/parameters/sig_enforce", "Y\n");
    let status = machine.loader().status().unwrap();
    assert!(machine.calls().is_empty());
    assert!(!machine.config().state.exists());
    assert_eq!(
        serde_json::to_value(&status).unwrap(),
        serde_json::json!({
            "kernel": RELEASE,
            "vmbus": true, "offered": true,
            "bound_to": null,
            "node": {"state": "absent"},
            "modules": [],
            "restrictions": ["sigEnforce"],
            "unread": [],
            "in_box": true,
            "prebuilt": true,
            "loaded_by_us": [],
            "outdated": null,
            "orphan": {"state": "absent"},
        })
    );
    machine.file("sys/module/azb_vsc/refcnt", "3\n");
    let text = machine.loader().status().unwrap().to_string();
    assert!(text.contains("module: azb_vsc with 3 users"), "{text}");
    assert!(text.contains("sig_enforce"), "{text}");
}

#[test]
fn reports_are_stable_json() {
    let report = Machine::offered().load();
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        serde_json::json!({
            "kernel": RELEASE,
            "outcome": {"result": "https"},
            "steps": [
                {"rung": "node", "state": "absent"},
                {"rung": "inBox", "state": "none"},
                {"rung": "prebuilt", "state": "none"},
                {"rung": "build", "state": "off"},
            ],
            "orphan": {"state": "absent"},
            "outdated": null,
            "unread": [],
        })
    );
}

#[test]
fn the_digest_is_sha256() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "abc", "abc");
    let digest = manifest::digest(&mut File::open(folder.path().join("abc")).unwrap()).unwrap();
    assert_eq!(
        digest,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

/// Longer than any of these programs runs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program has started is ended with it.
#[test]
fn the_real_system_ends_a_program_that_takes_too_long() {
    let folder = TempDir::new().unwrap();
    let note = folder.path().join("pid");
    let script = format!("sleep 3600 & echo $! >{}; wait", note.display());
    // The program is given time to write the note: it is ended only after that.
    let error = (1..)
        .find_map(|seconds| {
            let limit = Duration::from_secs(seconds);
            let error = Kernel
                .run(Path::new("/"), "sh", &["-c", &script], limit)
                .unwrap_err();
            fs::read_to_string(&note)
                .is_ok_and(|text| text.ends_with('\n'))
                .then_some(error)
        })
        .unwrap();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let pid = fs::read_to_string(&note).unwrap();
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    // Gone, or dead and not yet collected by the machine's init.
    let dead = || fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
    let began = std::time::Instant::now();
    while !dead() {
        assert!(began.elapsed() < PATIENCE, "{} still runs", pid.trim());
        std::thread::yield_now();
    }
}

/// A child in the background keeps the stream; the program itself has ended.
#[test]
fn the_real_system_does_not_wait_for_ever_for_what_a_program_leaves_behind() {
    let ran = Kernel
        .run(
            Path::new("/"),
            "sh",
            &["-c", "sleep 30 & echo out"],
            Duration::from_secs(2),
        )
        .unwrap();
    assert!(ran.success);
}

#[test]
fn the_real_system_runs_programs() {
    let ran = Kernel
        .run(
            Path::new("/"),
            "sh",
            &["-c", "echo out; echo err >&2; exit 3"],
            PATIENCE,
        )
        .unwrap();
    assert!(!ran.success);
    assert_eq!(ran.output, "out\nerr\n");
}

#[test]
fn the_real_system_changes_its_root() {
    // A folder without any program in it; a user who may not change the root is refused.
    let empty = TempDir::new().unwrap();
    let error = Kernel
        .run(empty.path(), "sh", &["-c", "true"], PATIENCE)
        .unwrap_err();
    let expected = if nix::unistd::geteuid().is_root() {
        io::ErrorKind::NotFound
    } else {
        io::ErrorKind::PermissionDenied
    };
    assert_eq!(error.kind(), expected);
}
