//! Each alert is made to fire by what it is for, and to clear, and each panel of the dashboard has data: in a
//! real Prometheus that reads real nodes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use blob_client::Metadata;
use e2e::fuse;
use e2e::harness::backend::{Backend, ContainerView, Kind};
use e2e::harness::node::{Node, NodeOptions};
use e2e::harness::{tree, wait_for};
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, Fault, FaultRule, SasOptions};
use e2e::vsp::MockVsp;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic::Code;
use vsc_blob_csi::error::Reason;

use super::prometheus::Prometheus;
use super::render::{Helm, chart, object, repository, text};

/// How long what must come may take, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// Mount options of the volumes.
const FLAGS: &[&str] = &["timeout=2s", "attr_timeout=0", "entry_timeout=0"];
/// A node that reaches the service over HTTPS, one that has the channel, and their volumes.
const FAR: &str = "far";
const NEAR: &str = "near";
/// Windows of the rules, and how long they are here: a fault need not last for minutes.
const WINDOWS: [(&str, &str); 4] = [
    ("[5m]", "[8s]"),
    ("[10m]", "[8s]"),
    ("offset 10m", "offset 8s"),
    ("[15m]", "[20s]"),
];

/// The rule's groups, as the chart renders them for these values.
fn rules(values: &[(&str, Value)]) -> Value {
    let helm = Helm::minimal().json("prometheusRule.enabled", &json!(true));
    let helm = values
        .iter()
        .fold(helm, |helm, (key, value)| helm.json(key, value));
    let objects = helm.objects();
    object(&objects, "PrometheusRule", "vsc-blob-csi")["spec"].clone()
}

/// The rules with windows and delays of seconds.
fn quick(mut rules: Value) -> Value {
    let groups = rules["groups"].as_array_mut().unwrap();
    for rule in groups
        .iter_mut()
        .flat_map(|group| group["rules"].as_array_mut().unwrap())
    {
        let expression = rule["expr"].as_str().unwrap();
        let mut shortened = expression.to_owned();
        for (window, short) in WINDOWS {
            shortened = shortened.replace(window, short);
        }
        assert!(
            !shortened.contains("m]") && !shortened.contains("0m"),
            "a window that no test shortens: {expression}"
        );
        rule["expr"] = shortened.into();
        if rule.get("for").is_some() {
            rule["for"] = "1s".into();
        }
    }
    rules
}

fn alerts(rules: &Value) -> BTreeSet<String> {
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| rule["alert"].as_str().unwrap().to_owned())
        .collect()
}

/// The queries of the dashboard's panels by the titles of the panels, with what Grafana fills in.
fn panels() -> BTreeMap<String, String> {
    let dashboard: Value = serde_json::from_str(&text(&chart("files/dashboard.json"))).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = BTreeMap::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$node", ".*").replace("$volume", ".*");
            let query = query.replace("$__rate_interval", "8s");
            assert!(!query.contains('$'), "{title}: {query}");
            queries.insert(format!("{title} {}", target["refId"].as_str().unwrap()), query);
        }
    }
    queries
}

#[test]
fn each_alert_has_a_runbook() {
    let runbooks = text(&repository("docs/runbooks.md"));
    let headings: BTreeSet<_> = runbooks
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let alerts = alerts(&rules(&[]));
    let names: BTreeSet<_> = alerts.iter().map(String::as_str).collect();
    assert_eq!(
        names, headings,
        "left: alerts; right: headings of docs/runbooks.md"
    );

    let url = "https://runbooks.example/vsc";
    let published = rules(&[("prometheusRule.runbooks", json!(url))]);
    for rule in published["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        let wanted = format!("{url}#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], Value::from(wanted));
        assert!(rule["labels"]["severity"].is_string(), "{name}");
    }
}

/// kubelet repeats a call that has not ended: no alert. It is told so by an `Aborted`.
#[test]
fn what_is_only_pending_is_no_failure() {
    let rules = rules(&[]);
    let mut rules = rules["groups"][0]["rules"].as_array().unwrap().iter();
    let rule = rules.find(|rule| rule["alert"] == "VscBlobCallsFail").unwrap();
    let expression = rule["expr"].as_str().unwrap();
    let pending: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| reason.code() == Code::Aborted)
        .map(|reason| format!("{{reason!=\"{reason}\"}}"))
        .collect();
    let [pending] = pending.as_slice() else {
        panic!("several: {pending:?}");
    };
    let series = expression.matches("vsc_blob_rpc_failures_total").count();
    assert_eq!(expression.matches(pending).count(), series, "{expression}");
}

/// What kube-state-metrics says of the DaemonSet: how many nodes have no pod of it that is available. Ends
/// with the test's process.
fn cluster(unavailable: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok_and(|read| read == 0) {
                continue;
            }
            let body = format!(
                "kube_daemonset_status_number_unavailable{{namespace=\"kube-system\",\
                 daemonset=\"vsc-blob-csi-node\"}} {}\n",
                unavailable.load(Ordering::SeqCst)
            );
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
            // One that breaks off is asked again.
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

#[test]
fn the_dashboard_is_one_that_the_sidecar_finds() {
    let helm = Helm::minimal().json("dashboard.enabled", &json!(true));
    let objects = helm.objects();
    let map = object(&objects, "ConfigMap", "vsc-blob-csi-dashboard");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let rendered: Value = serde_json::from_str(map["data"]["vsc-blob.json"].as_str().unwrap()).unwrap();
    let file: Value = serde_json::from_str(&text(&chart("files/dashboard.json"))).unwrap();
    assert_eq!(rendered, file);
    let ids = file["panels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap());
    let count = ids.clone().count();
    assert_eq!(
        ids.collect::<BTreeSet<_>>().len(),
        count,
        "two panels have one id"
    );
}

/// A file that somebody else replaces when it has been read: never while it is.
#[derive(Debug, Default)]
struct Given {
    wanted: AtomicBool,
    at_work: AtomicBool,
}

/// What programs do all the time: read what somebody has just stored, read again, list, write.
fn work(at: &Path, given: &Given, round: u64) {
    // In a fault these fail.
    if !given.wanted.load(Ordering::SeqCst) && !given.at_work.load(Ordering::SeqCst) {
        let _ = std::fs::read(at.join("given"));
        given.wanted.store(true, Ordering::SeqCst);
    }
    let _ = std::fs::read(at.join("kept"));
    let _ = std::fs::read_dir(at).map(Iterator::count);
    let _ = std::fs::write(at.join(format!("made-{}", round % 8)), vec![1; 8 << 10]);
}

/// What somebody else does: what he stores is in no cache.
fn give(container: &ContainerView, given: &Given, round: u64) {
    if given.wanted.load(Ordering::SeqCst) {
        given.at_work.store(true, Ordering::SeqCst);
        given.wanted.store(false, Ordering::SeqCst);
        // In a fault of the store it is out of reach for him too.
        let _ = container.write("given", vec![round as u8; 64 << 10], &Metadata::new());
        given.at_work.store(false, Ordering::SeqCst);
    }
    // The pause between two looks.
    std::thread::sleep(Duration::from_millis(5));
}

/// Two nodes, a volume on each, and the Prometheus that reads both.
struct World {
    prometheus: Prometheus,
    nodes: BTreeMap<&'static str, Node>,
    /// Panels that have had no data yet.
    empty: BTreeMap<String, String>,
    /// Alerts that have fired and cleared.
    seen: BTreeSet<String>,
}

impl World {
    fn is_firing(&self, alert: &str, node: &str) -> Result<bool> {
        let firing = self.prometheus.firing()?;
        Ok(firing
            .iter()
            .any(|firing| firing.alert == alert && firing.node == node))
    }

    /// Asks the panels that have had no data yet.
    fn look(&mut self) -> Result<()> {
        let mut filled = Vec::new();
        for (panel, query) in &self.empty {
            let samples = self.prometheus.query(query)?;
            let number = |sample: &Value| sample["value"][1].as_str().and_then(|v| v.parse::<f64>().ok());
            if samples.iter().filter_map(number).any(f64::is_finite) {
                filled.push(panel.clone());
            }
        }
        self.empty.retain(|panel, _| !filled.contains(panel));
        Ok(())
    }

    /// Begins what makes the alerts fire, waits until they do, ends it, and waits until they do no more.
    fn shows(
        &mut self,
        alerts: &[&str],
        node: &str,
        begin: impl FnOnce(&mut Self) -> Result<()>,
        end: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        begin(self).with_context(|| format!("making {alerts:?} fire"))?;
        for alert in alerts {
            wait_for(&format!("{alert} to fire"), LIMIT, || {
                Ok(self.is_firing(alert, node)?.then_some(()))
            })?;
        }
        self.look()?;
        let fired = Instant::now();
        end(self).with_context(|| format!("making {alerts:?} clear"))?;
        for alert in alerts {
            wait_for(&format!("{alert} to clear"), LIMIT, || {
                Ok((!self.is_firing(alert, node)?).then_some(()))
            })?;
            self.seen.insert((*alert).to_owned());
        }
        println!(
            "{alerts:?}: fired after {:?}, cleared after {:?}",
            fired - begun,
            fired.elapsed()
        );
        Ok(())
    }
}

fn every(fault: Fault) -> FaultRule {
    FaultRule {
        operation: None,
        blob_contains: None,
        skip: 0,
        times: u64::MAX,
        fault,
    }
}

fn answer(status: u16, code: &str) -> Fault {
    Fault::Answer {
        status,
        code: code.into(),
        retry_after: None,
    }
}

/// Runs each of `workers` again and again beside `body`, until that has ended.
fn beside<T>(workers: &[&(dyn Fn(u64) + Sync)], body: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in workers {
            let over = &over;
            scope.spawn(move || {
                let rounds = (0..).take_while(|_| !over.load(Ordering::Relaxed));
                rounds.for_each(worker);
            });
        }
        let outcome = body();
        over.store(true, Ordering::Relaxed);
        outcome
    })
}

#[test]
fn alerts_fire_and_clear_and_panels_have_data() {
    let values = [
        ("prometheusRule.unstoredSeconds", json!(2)),
        ("prometheusRule.slowSeconds", json!(0.4)),
    ];
    let rules = quick(rules(&values));
    let unavailable = Arc::new(AtomicU64::new(0));
    let said = cluster(Arc::clone(&unavailable));
    let prometheus = Prometheus::start(&rules, "kube-system/vsc-blob-csi-node", said).unwrap();

    let (far, near) = (
        Backend::start(Kind::Embedded).unwrap(),
        Backend::start(Kind::Embedded).unwrap(),
    );
    let stores = [&far, &near].map(|backend| Arc::clone(backend.store().unwrap()));
    let container = far.create_container("files").unwrap();
    let close = near.create_container("files").unwrap();
    for container in [&container, &close] {
        container
            .write("kept", vec![7; 256 << 10], &Metadata::new())
            .unwrap();
    }
    let folder = tree::scratch().unwrap();
    let device = MockVsp::mount(
        folder.path(),
        Arc::clone(&stores[1]) as Arc<dyn e2e::vsp::Backend>,
    )
    .unwrap();

    let over_https = NodeOptions {
        budget: 32 * MIB,
        more: vec!["--max-volumes=1".into()],
        ..NodeOptions::default()
    };
    let over_channel = NodeOptions {
        budget: 64 * MIB,
        device: Some(device.device()),
        ..NodeOptions::default()
    };
    let nodes = BTreeMap::from([
        (FAR, Node::start(&over_https).unwrap()),
        (NEAR, Node::start(&over_channel).unwrap()),
    ]);
    let addresses: Vec<_> = nodes.iter().map(|(name, node)| (*name, node.health())).collect();
    prometheus.reads(&addresses).unwrap();
    let near_at = nodes[NEAR].stage(NEAR, near.endpoint(), "files", FLAGS).unwrap();
    let mut world = World {
        prometheus,
        nodes,
        empty: panels(),
        seen: BTreeSet::new(),
    };

    // The node that takes one volume, with its one and without.
    let far_at = world.nodes[FAR]
        .stage(FAR, far.endpoint(), "files", FLAGS)
        .unwrap();
    let given = [Given::default(), Given::default()];
    let workers: [&(dyn Fn(u64) + Sync); 4] = [
        &|round| work(&far_at, &given[0], round),
        &|round| work(&near_at, &given[1], round),
        &|round| give(&container, &given[0], round),
        &|round| give(&close, &given[1], round),
    ];
    let outcome = beside(&workers, || {
        far_faults(&mut world, &stores[0], &far_at, &far)?;
        near_faults(&mut world, &device)
    });
    outcome.unwrap();
    let end = |world: &mut World| world.nodes[FAR].unstage(FAR);
    world.shows(&["VscBlobNodeFull"], FAR, |_| Ok(()), end).unwrap();

    // A node whose program has ended, and the one that comes in its place.
    let kill = |world: &mut World| world.nodes[NEAR].process().signal(Signal::SIGKILL);
    let again = |world: &mut World| {
        let node = Node::start(&NodeOptions {
            budget: 32 * MIB,
            ..NodeOptions::default()
        })?;
        world
            .prometheus
            .reads(&[(FAR, world.nodes[FAR].health()), (NEAR, node.health())])?;
        world.nodes.insert(NEAR, node);
        Ok(())
    };
    world
        .shows(&["VscBlobNodePluginDown"], NEAR, kill, again)
        .unwrap();

    absent_pods(&mut world, &unavailable).unwrap();

    assert!(
        world.empty.is_empty(),
        "panels that never had data: {:#?}",
        world.empty
    );
    assert_eq!(
        world.seen,
        alerts(&rules),
        "left: seen to fire and clear; right: of the chart"
    );
}

/// What goes wrong between a node and the service.
fn far_faults(
    world: &mut World,
    store: &Arc<e2e::store::BlobStore>,
    at: &Path,
    backend: &Backend,
) -> Result<()> {
    let inject = |fault: Fault| {
        let store = Arc::clone(store);
        move |_: &mut World| {
            store.inject(every(fault));
            Ok(())
        }
    };
    let heal = || {
        let store = Arc::clone(store);
        move |_: &mut World| {
            store.clear_faults();
            store.set_latency(None, Duration::ZERO);
            Ok(())
        }
    };
    // Everything is well: nothing fires but what says that the node is full.
    wait_for("panels of a node that works", LIMIT, || {
        world.look()?;
        Ok((!world.empty.contains_key("Time of requests A")).then_some(()))
    })?;
    // Besides what says that the node is full nothing fires, once all has begun.
    wait_for("nothing to fire without a fault", LIMIT, || {
        let firing = world.prometheus.firing()?;
        let others = firing.iter().any(|firing| firing.alert != "VscBlobNodeFull");
        Ok((!others).then_some(()))
    })?;

    world.shows(
        &["VscBlobServiceSlow"],
        FAR,
        |_| {
            store.set_latency(None, Duration::from_millis(700));
            Ok(())
        },
        heal(),
    )?;
    world.shows(
        &["VscBlobAccessDenied"],
        FAR,
        inject(answer(403, "AuthorizationFailure")),
        heal(),
    )?;
    world.shows(
        &["VscBlobServiceUnreachable", "VscBlobProgramsSeeErrors"],
        FAR,
        inject(Fault::Disconnect),
        heal(),
    )?;
    // Programs go on writing to a service that takes nothing: what they have closed is kept.
    let busy = inject(answer(503, "ServerBusy"));
    let large = RefCell::new(Some(std::fs::File::create(at.join("large"))?));
    let mut small = std::fs::File::create(at.join("small"))?;
    let fill = |world: &mut World| {
        busy(world)?;
        small.write_all(&[4; 8 << 10])?;
        drop(small);
        let piece = vec![3; MIB as usize];
        // Until there is no room any more.
        let mut large = large.borrow_mut();
        let file = large.as_mut().context("closed already")?;
        while file.write_all(&piece).is_ok() {}
        Ok(())
    };
    let close = |_: &mut World| {
        store.clear_faults();
        // What an open file holds stays there until it is closed.
        drop(large.borrow_mut().take());
        Ok(())
    };
    world.shows(
        &[
            "VscBlobThrottled",
            "VscBlobRepetitionsRefused",
            "VscBlobDataUnstored",
            "VscBlobMemoryFull",
        ],
        FAR,
        fill,
        close,
    )?;
    // A SAS that ends in an hour, beside the volume that has a key.
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY)?;
    let sas = signer.container_sas("files", &SasOptions::new("racwdl", Duration::from_secs(3600)));
    let secrets = HashMap::from([
        ("azurestorageaccountname".to_owned(), DEV_ACCOUNT.to_owned()),
        ("azurestorageaccountsastoken".to_owned(), sas),
    ]);
    world.shows(
        &["VscBlobCredentialExpires"],
        NEAR,
        |world| {
            world.nodes[NEAR]
                .stage_with("sas", backend.endpoint(), "files", FLAGS, secrets)
                .map(drop)
        },
        |world| world.nodes[NEAR].unstage("sas"),
    )?;
    // The connection of a mount ends, by whomever: nobody serves it any more.
    let die = |world: &mut World| {
        let at = world.nodes[NEAR].stage("dead", backend.endpoint(), "files", FLAGS)?;
        let connection = fuse::connection_at(&at)?.context("not mounted")?;
        Ok(fuse::abort(connection)?)
    };
    world.shows(&["VscBlobMountsDead"], NEAR, die, |world| {
        world.nodes[NEAR].unstage("dead")
    })?;
    // The first ones of this reason: nothing was counted of it before.
    let fail = |world: &mut World| {
        for _ in 0..2 {
            let refused = world.nodes[NEAR].stage("wrong", backend.endpoint(), "absent", FLAGS);
            ensure!(refused.is_err(), "a container that is not there was staged");
        }
        Ok(())
    };
    world.shows(&["VscBlobCallsFail"], NEAR, fail, |_| Ok(()))
}

/// Nodes whose pod is not there, of which Prometheus knows nothing; and all of them.
fn absent_pods(world: &mut World, unavailable: &AtomicU64) -> Result<()> {
    const ALERT: &str = "VscBlobNodePluginDown";
    let told = |world: &World, summary: &str| {
        wait_for("what is told of pods that are not there", LIMIT, || {
            Ok((world.prometheus.summaries(ALERT)? == [summary]).then_some(()))
        })
    };
    world.shows(
        &[ALERT],
        "",
        |world| {
            unavailable.store(3, Ordering::SeqCst);
            told(
                world,
                "3 nodes have no node plugin that is ready; their volumes may be dead, and new ones wait.",
            )
        },
        |_| {
            unavailable.store(0, Ordering::SeqCst);
            Ok(())
        },
    )?;
    world.shows(
        &[ALERT],
        "",
        |world| {
            world.prometheus.reads(&[])?;
            told(world, "Prometheus reads no node plugin at all.")
        },
        |world| {
            let nodes = world.nodes.iter().map(|(name, node)| (*name, node.health()));
            world.prometheus.reads(&nodes.collect::<Vec<_>>())
        },
    )
}

/// What goes wrong with the channel.
fn near_faults(world: &mut World, device: &MockVsp) -> Result<()> {
    let usable = |world: &World, wanted: f64| {
        wait_for("the channel to change", LIMIT, || {
            Ok((world.nodes[NEAR].metric("vsc_blob_channel_usable")? == wanted).then_some(()))
        })
    };
    // However long a change takes here: again and again until the changes within a window are enough.
    let flap = |world: &mut World| {
        wait_for("changes enough", LIMIT, || {
            device.faults().update(|faults| faults.gone = true);
            usable(world, 0.0)?;
            device.faults().update(|faults| faults.gone = false);
            usable(world, 1.0)?;
            Ok(world.is_firing("VscBlobChannelFlaps", NEAR)?.then_some(()))
        })
    };
    world.shows(&["VscBlobChannelFlaps"], NEAR, flap, |_| Ok(()))?;
    world.shows(
        &["VscBlobChannelLosesRequests"],
        NEAR,
        |_| {
            device.faults().update(|faults| faults.hold_next = 2);
            Ok(())
        },
        |_| {
            device.faults().reset();
            device.faults().release();
            Ok(())
        },
    )
}
