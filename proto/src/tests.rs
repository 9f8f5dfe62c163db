//! Secrets stay out of Debug; the interface keeps its numbers.

use std::collections::HashMap;

use prost::Message;

use crate::csi::*;

const CANARY: &str = "canary-5d1c";

include!(concat!(env!("OUT_DIR"), "/secret_messages.rs"));

#[test]
fn no_secret_reaches_debug() {
    let mut formatted = 0;
    macro_rules! check {
        ($message:ident, [$($secret:ident),+]) => {{
            let secrets = HashMap::from([("azurestorageaccountkey".to_owned(), CANARY.to_owned())]);
            // Some messages consist of their secrets.
            #[allow(clippy::needless_update)]
            let message = $message { $($secret: secrets.clone(),)+ ..Default::default() };
            for text in [format!("{message:?}"), format!("{message:#?}")] {
                assert!(!text.contains(CANARY), "{text}");
                assert!(text.contains("***"), "{text}");
            }
            formatted += 1;
        }};
    }
    for_each_secret_message!(check);
    // The interface marks secrets in at least the ten requests of Node and Controller that this plugin serves
    // or refuses.
    assert!(formatted >= 10, "only {formatted} messages with secrets");
}

#[test]
fn debug_shows_everything_else() {
    let request = NodePublishVolumeRequest {
        volume_id: "the-volume".into(),
        target_path: "/pods/1".into(),
        volume_context: HashMap::from([("containerName".into(), "photos".into())]),
        ..Default::default()
    };
    let text = format!("{request:?}");
    for expected in [
        "NodePublishVolumeRequest",
        "the-volume",
        "/pods/1",
        "containerName",
        "photos",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[test]
fn pod_tokens_in_a_volume_context_are_hidden() {
    let context = HashMap::from([("csi.storage.k8s.io/serviceAccount.tokens".into(), CANARY.into())]);
    let request = NodePublishVolumeRequest {
        volume_context: context,
        ..Default::default()
    };
    let text = format!("{request:?}");
    assert!(
        !text.contains(CANARY) && text.contains("serviceAccount.tokens"),
        "{text}"
    );
}

/// Field 2 of NodeGetVolumeStatsResponse is v1.12's condition: kubelets up to 1.36 read these very bytes.
#[test]
fn volume_condition_keeps_its_numbers() {
    let response = NodeGetVolumeStatsResponse {
        usage: Vec::new(),
        volume_condition: Some(VolumeCondition {
            abnormal: true,
            message: "m".into(),
        }),
    };
    assert_eq!(response.encode_to_vec(), [0x12, 5, 0x08, 1, 0x12, 1, b'm']);
    assert_eq!(node_service_capability::rpc::Type::VolumeCondition as i32, 4);
    assert_eq!(
        controller_service_capability::rpc::Type::VolumeCondition as i32,
        11
    );
    assert_eq!(node_service_capability::rpc::Type::GetVolumeHealth as i32, 7);
}

#[test]
fn registration_speaks_kubelets_names() {
    use crate::registration::registration_server::SERVICE_NAME;
    assert_eq!(SERVICE_NAME, "pluginregistration.Registration");
    let info = crate::registration::PluginInfo {
        r#type: "T".into(),
        ..Default::default()
    };
    assert_eq!(info.encode_to_vec(), [0x0a, 1, b'T']);
}
