//! Pods as the cases write them.

use serde_json::{Value, json};

/// What a pod runs that only waits: it ends at SIGTERM, not after the grace period.
const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// A pod with one container, in steps.
#[derive(Debug, Clone)]
pub(crate) struct PodPlan(Value);

impl PodPlan {
    /// A pod that waits.
    pub(crate) fn new(name: &str) -> Self {
        Self(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "app",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", WAIT],
                    "volumeMounts": [],
                }],
                "volumes": [],
            },
        }))
    }

    /// The claim at `/data`.
    pub(crate) fn claim(self, claim: &str) -> Self {
        self.volume(json!({"persistentVolumeClaim": {"claimName": claim}}))
    }

    /// A volume source at `/data`.
    pub(crate) fn volume(mut self, source: Value) -> Self {
        let mut volume = source;
        volume["name"] = json!("data");
        push(&mut self.0["spec"]["volumes"], volume);
        push(
            &mut self.0["spec"]["containers"][0]["volumeMounts"],
            json!({"name": "data", "mountPath": "/data"}),
        );
        self
    }

    /// Runs this, then waits.
    pub(crate) fn script(self, script: &str) -> Self {
        let command = format!("{script}\n{WAIT}");
        self.set("/spec/containers/0/command", json!(["sh", "-c", command]))
    }

    /// The value at a JSON pointer whose parent exists.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer begins with /");
        let parent = self.0.pointer_mut(parent).expect("the pointer's parent exists");
        parent[key] = value;
        self
    }

    /// The finished object.
    pub(crate) fn build(self, image: &str) -> Value {
        self.set("/spec/containers/0/image", json!(image)).0
    }

    pub(crate) fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().expect("a list").push(item);
}
