//! docs/security.md lists what each container may do; the rendered pods may do exactly that.

use std::collections::BTreeSet;

use serde_json::Value;
use vsc_blob_csi::privileges::KEPT;

use super::render::{Helm, object, repository, text};

/// The code spans in the first column of the table below a heading.
fn listed(heading: &str) -> BTreeSet<String> {
    let page = text(&repository("docs/security.md"));
    let section: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .collect();
    let rights = section.iter().filter_map(|line| line.strip_prefix("| `"));
    let rights: BTreeSet<String> = rights
        .filter_map(|row| row.split_once('`'))
        .map(|(right, _)| right.to_owned())
        .collect();
    assert!(!rights.is_empty(), "docs/security.md: no table below {heading:?}");
    rights
}

/// What a container has beyond an unprivileged process with a private file system.
fn granted(pod: &Value, container: &Value) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    let mut add = |right: String| rights.insert(right);
    for (field, right) in [
        ("hostNetwork", "host network"),
        ("hostPID", "host PID"),
        ("hostIPC", "host IPC"),
    ] {
        if pod[field] == true {
            add(right.to_owned());
        }
    }
    if pod["automountServiceAccountToken"] != false {
        add("service account token".to_owned());
    }
    let of_container = &container["securityContext"];
    let of_pod = &pod["securityContext"];
    let privileged = of_container["privileged"] == true;
    if privileged {
        add("privileged".to_owned());
    } else {
        let capabilities = &of_container["capabilities"];
        if capabilities["drop"] != serde_json::json!(["ALL"]) {
            add("default capabilities".to_owned());
        }
        for capability in capabilities["add"].as_array().into_iter().flatten() {
            add(format!("capability {}", capability.as_str().unwrap()));
        }
        if of_container["allowPrivilegeEscalation"] != false {
            add("privilege escalation".to_owned());
        }
        if of_pod["seccompProfile"]["type"] != "RuntimeDefault"
            || of_container.get("seccompProfile").is_some()
        {
            add("other seccomp profile".to_owned());
        }
        let apparmor = |of: &Value| {
            !of["appArmorProfile"].is_null() && of["appArmorProfile"]["type"] != "RuntimeDefault"
        };
        if apparmor(of_container) || apparmor(of_pod) {
            add("other AppArmor profile".to_owned());
        }
    }
    if of_container["readOnlyRootFilesystem"] != true {
        add("writable image".to_owned());
    }
    let user = of_container.get("runAsUser").or(of_pod.get("runAsUser"));
    if user.is_none_or(|user| *user == 0) {
        add("user 0".to_owned());
    }
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let volume = pod["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|volume| volume["name"] == mount["name"])
            .unwrap();
        let Some(path) = volume["hostPath"]["path"].as_str() else {
            continue;
        };
        let mut right = format!("host {path}");
        // Elsewhere inside than outside.
        if mount["mountPath"] != path {
            right = format!("{right} at {}", mount["mountPath"].as_str().unwrap());
        }
        if mount["readOnly"] == true {
            right.push_str(" read-only");
        }
        if let Some(propagation) = mount["mountPropagation"].as_str() {
            right = format!("{right} {propagation}");
        }
        add(right);
    }
    rights
}

fn check(kind: &str, name: &str, list: &str, container: &str, heading: &str) {
    let objects = Helm::minimal().objects();
    let pod = &object(&objects, kind, name)["spec"]["template"]["spec"];
    let containers = pod[list].as_array().unwrap();
    let found = containers
        .iter()
        .find(|found| found["name"] == container)
        .unwrap();
    assert_eq!(
        granted(pod, found),
        listed(heading),
        "left: the chart; right: docs/security.md, {heading}"
    );
}

#[test]
fn the_loader_may_do_what_is_listed() {
    check(
        "DaemonSet",
        "vsc-blob-csi-node",
        "initContainers",
        "load-driver",
        "### load-driver",
    );
}

#[test]
fn the_node_plugin_may_do_what_is_listed() {
    check(
        "DaemonSet",
        "vsc-blob-csi-node",
        "containers",
        "vsc-blob-csi",
        "### vsc-blob-csi (node)",
    );
}

/// What the program keeps of a privileged container's capabilities (node-plugin/tests/privileges.rs looks at
/// a running one).
#[test]
fn the_node_plugin_keeps_the_capabilities_that_are_listed() {
    let kept: BTreeSet<String> = KEPT
        .iter()
        .map(|(capability, _)| capability.to_string())
        .collect();
    assert_eq!(kept, listed("#### Capabilities that it keeps"));
    let page = text(&repository("docs/security.md"));
    for (capability, reason) in KEPT {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{capability}` |")));
        let row = row.unwrap().replace('`', "");
        assert!(
            row.contains(reason),
            "{capability}: docs/security.md gives another reason than {reason:?}"
        );
    }
}

#[test]
fn the_controller_may_do_what_is_listed() {
    for container in ["vsc-blob-csi", "csi-provisioner"] {
        check(
            "Deployment",
            "vsc-blob-csi-controller",
            "containers",
            container,
            "### Controller",
        );
    }
}

/// One verb on one kind of object: who, where, `group/resource`, name or nothing, verb.
type Right = (String, String, String, String, String);

/// The rows of "In the cluster".
fn listed_in_the_cluster() -> BTreeSet<Right> {
    let page = text(&repository("docs/security.md"));
    let section = page.split("\n## In the cluster\n").nth(1).unwrap();
    let rows = section
        .split("\n## ")
        .next()
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| who"));
    let mut rights = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [who, place, resources, verbs, why] = cells[..] else {
            panic!("five columns: {row}");
        };
        assert!(why.len() > 5, "no reason: {row}");
        let name = resources
            .split_once('(')
            .map_or("", |(_, name)| name.trim_end_matches(')'));
        for resource in resources.split('`').skip(1).step_by(2) {
            for verb in verbs.split('`').skip(1).step_by(2) {
                let right = [who, place, resource, name, verb].map(str::to_owned);
                let [who, place, resource, name, verb] = right;
                let new = rights.insert((who, place, resource, name, verb));
                assert!(new, "twice: {row}");
            }
        }
    }
    rights
}

/// What the rendered roles give, by the account that they are bound to. Names of Secrets are the user's.
fn granted_in_the_cluster(helm: &Helm) -> BTreeSet<Right> {
    let strings = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let objects = helm.objects();
    let mut rights = BTreeSet::new();
    let mut bound = 0;
    for binding in &objects {
        let kind = match binding["kind"].as_str().unwrap() {
            "ClusterRoleBinding" => "ClusterRole",
            "RoleBinding" => "Role",
            _ => continue,
        };
        assert_eq!(binding["roleRef"]["kind"], kind);
        let namespace = &binding["metadata"]["namespace"];
        let role = objects.iter().find(|object| {
            object["kind"] == kind
                && object["metadata"]["name"] == binding["roleRef"]["name"]
                && object["metadata"]["namespace"] == *namespace
        });
        let role = role.unwrap_or_else(|| panic!("no role for {binding}"));
        bound += 1;
        for subject in binding["subjects"].as_array().unwrap() {
            assert_eq!(subject["kind"], "ServiceAccount");
            assert_eq!(subject["namespace"], "kube-system");
            let account = subject["name"].as_str().unwrap();
            let who = account.strip_prefix("vsc-blob-csi-").unwrap();
            for rule in role["rules"].as_array().unwrap() {
                let secrets = rule["resources"] == serde_json::json!(["secrets"]);
                let place = match kind {
                    "ClusterRole" => "cluster",
                    _ if secrets => "secretNamespaces",
                    _ => "namespace",
                };
                let mut names = strings(&rule["resourceNames"]);
                if names.is_empty() || secrets {
                    names = vec![String::new()];
                }
                for group in strings(&rule["apiGroups"]) {
                    for resource in strings(&rule["resources"]) {
                        let resource = format!("{group}/{resource}");
                        for verb in strings(&rule["verbs"]) {
                            for name in &names {
                                rights.insert((
                                    who.to_owned(),
                                    place.to_owned(),
                                    resource.trim_start_matches('/').to_owned(),
                                    name.clone(),
                                    verb.clone(),
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    let roles = objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role");
    assert_eq!(
        roles.count(),
        bound,
        "a role for each binding, and the other way round"
    );
    rights
}

/// To the verb: a right that is given and not listed fails, and one that is listed and not given.
#[test]
fn the_roles_give_what_is_listed() {
    let listed = listed_in_the_cluster();
    let [minimal, full, aks] = super::render::value_sets();
    assert_eq!(
        granted_in_the_cluster(&full),
        listed,
        "left: the chart with everything on; right: docs/security.md"
    );
    let without: BTreeSet<Right> = listed
        .into_iter()
        .filter(|(_, place, ..)| place != "secretNamespaces")
        .collect();
    for helm in [minimal, aks] {
        assert_eq!(
            granted_in_the_cluster(&helm),
            without,
            "left: the chart; right: docs/security.md, without secretNamespaces"
        );
    }
}

#[test]
fn the_clean_up_may_do_what_is_listed() {
    check(
        "Job",
        "vsc-blob-csi-uninstall",
        "containers",
        "cluster-cleanup",
        "### Uninstall",
    );
}

#[test]
fn the_preparation_may_do_what_is_listed() {
    check(
        "Job",
        "vsc-blob-csi-upgrade",
        "containers",
        "cluster-prepare",
        "### Upgrade",
    );
}

/// Two views of one folder of the node keep mounts busy in the one that is not looked at. The loader's folder
/// is in the kubelet's and has no mounts: it may be seen again, read-only.
#[test]
fn no_host_folder_is_mounted_twice() {
    for helm in super::render::value_sets() {
        let objects = helm.objects();
        let pod = &object(&objects, "DaemonSet", "vsc-blob-csi-node")["spec"]["template"]["spec"];
        let mut bidirectional = 0;
        for container in pod["containers"].as_array().unwrap() {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mut paths: Vec<&str> = mounts
                .iter()
                .map(|mount| mount["mountPath"].as_str().unwrap())
                .collect();
            paths.sort_unstable();
            for pair in paths.windows(2) {
                assert!(
                    !pair[1].starts_with(&format!("{}/", pair[0])) && pair[0] != pair[1],
                    "{pair:?}"
                );
            }
            let sources = mounts.iter().map(|mount| {
                let volumes = pod["volumes"].as_array().unwrap();
                let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
                (volume.unwrap()["hostPath"]["path"].as_str(), mount)
            });
            let sources: Vec<(&str, &Value)> =
                sources.filter_map(|(path, mount)| Some((path?, mount))).collect();
            for (outer, _) in &sources {
                for (inner, mount) in &sources {
                    if inner.starts_with(&format!("{outer}/")) {
                        assert_eq!(mount["readOnly"], true, "{inner} is in {outer}");
                        assert!(inner.ends_with("/loader"), "{inner} is in {outer}");
                    }
                }
            }
            bidirectional += mounts
                .iter()
                .filter(|mount| mount["mountPropagation"] == "Bidirectional")
                .count();
        }
        assert_eq!(bidirectional, 1);
    }
}
