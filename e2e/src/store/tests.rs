//! Tests of the store as a whole, in process, with signed requests.

mod faults;
mod protected;

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Request, Response};
use proptest::prelude::*;

use super::address::Target;
use super::auth::{Presented, string_to_sign};
use super::encoding::base64;
use super::*;

/// A client of one store in process.
pub(super) struct Caller {
    pub(super) store: Arc<BlobStore>,
    now: SystemTime,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn code(&self) -> &str {
        self.header("x-ms-error-code")
    }
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|v| v.to_str().unwrap())
            .unwrap_or_default()
    }
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
    fn of(response: Response<Vec<Bytes>>) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.into_body().concat(),
        }
    }
}

impl Caller {
    pub(super) fn new() -> Self {
        Self::over(BlobStore::new(StoreConfig::default()).unwrap())
    }
    pub(super) fn over(store: Arc<BlobStore>) -> Self {
        Self {
            store,
            now: SystemTime::now(),
        }
    }
    /// A request whose path and query follow the account, unsigned.
    pub(super) fn plain(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Answer::of(self.store.execute(self.request(method, path, headers, body)))
    }
    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Request<Bytes> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/{DEV_ACCOUNT}{path}"))
            .body(Bytes::copy_from_slice(body))
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        if !body.is_empty() {
            request.headers_mut().insert("content-length", body.len().into());
        }
        request
    }
    /// The same, signed with the account key.
    pub(super) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = self.request(method, path, headers, body);
        let date = httpdate::fmt_http_date(self.now);
        request
            .headers_mut()
            .insert("x-ms-date", HeaderValue::from_str(&date).unwrap());
        request
            .headers_mut()
            .insert("x-ms-version", HeaderValue::from_static("2025-05-05"));
        let target = Target::parse(request.uri(), None, DEV_ACCOUNT).unwrap();
        let to_sign = string_to_sign(
            DEV_ACCOUNT,
            &Presented {
                method: request.method(),
                target: &target,
                headers: request.headers(),
                body_len: body.len() as u64,
                peer: None,
                now: self.now,
            },
        );
        let signature = self.store.account.sign(&to_sign);
        request.headers_mut().insert(
            "authorization",
            HeaderValue::from_str(&format!("SharedKey {DEV_ACCOUNT}:{signature}")).unwrap(),
        );
        Answer::of(self.store.execute(request))
    }
    pub(super) fn with_container(self) -> Self {
        assert_eq!(self.call("PUT", "/box?restype=container", &[], b"").status, 201);
        self
    }
    pub(super) fn put(&self, name: &str, body: &[u8]) -> Answer {
        self.call(
            "PUT",
            &format!("/box/{name}"),
            &[("x-ms-blob-type", "BlockBlob")],
            body,
        )
    }
    fn stage(&self, name: &str, id: &[u8], body: &[u8]) -> Answer {
        let id = base64(id)
            .replace('=', "%3D")
            .replace('+', "%2B")
            .replace('/', "%2F");
        self.call("PUT", &format!("/box/{name}?comp=block&blockid={id}"), &[], body)
    }
}

#[test]
fn a_blob_is_put_read_in_ranges_and_deleted() {
    let c = Caller::new().with_container();
    let put = c.put("a%20b", b"0123456789");
    assert_eq!(put.status, 201);
    assert!(put.header("etag").starts_with("\"0x8D"));
    let get = c.call("GET", "/box/a%20b", &[("x-ms-range", "bytes=2-4")], b"");
    assert_eq!((get.status, &get.body[..]), (206, &b"234"[..]));
    assert_eq!(get.header("content-range"), "bytes 2-4/10");
    assert_eq!(get.header("content-length"), "3");
    assert_eq!(get.header("etag"), put.header("etag"));
    let head = c.call("HEAD", "/box/a%20b", &[], b"");
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, "10", 0)
    );
    let past = c.call("GET", "/box/a%20b", &[("range", "bytes=10-")], b"");
    assert_eq!((past.status, past.code()), (416, "InvalidRange"));
    assert_eq!(c.call("DELETE", "/box/a%20b", &[], b"").status, 202);
    let gone = c.call("HEAD", "/box/a%20b", &[], b"");
    assert_eq!(
        (gone.status, gone.code(), gone.body.len()),
        (404, "BlobNotFound", 0)
    );
}

#[test]
fn errors_are_xml_and_ids_are_echoed() {
    let c = Caller::new();
    let answer = c.call("GET", "/nobox/b", &[("x-ms-client-request-id", "mine")], b"");
    assert_eq!((answer.status, answer.code()), (404, "ContainerNotFound"));
    assert!(answer.text().contains("<Code>ContainerNotFound</Code>"));
    assert!(answer.text().contains(answer.header("x-ms-request-id")));
    assert_eq!(answer.header("x-ms-client-request-id"), "mine");
    assert_eq!(answer.header("x-ms-version"), "2025-05-05");
    assert_eq!(c.call("POST", "/box/b?comp=query", &[], b"").status, 501);
    assert_eq!(
        c.call("PUT", "/A_B?restype=container", &[], b"").code(),
        "InvalidResourceName"
    );
    assert_eq!(
        c.call("PUT", "/ab?restype=container", &[], b"").code(),
        "OutOfRangeInput"
    );
}

#[test]
fn checksums_are_checked() {
    let c = Caller::new().with_container();
    let body = b"123456789";
    let put = |extra: (&str, &str)| c.call("PUT", "/box/b", &[("x-ms-blob-type", "BlockBlob"), extra], body);
    assert_eq!(put(("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")).status, 201);
    assert_eq!(
        put(("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")).code(),
        "Md5Mismatch"
    );
    assert_eq!(put(("content-md5", "AAAA")).code(), "InvalidMd5");
    let crc = base64(&0xAE8B_1486_0A79_9888_u64.to_le_bytes());
    assert_eq!(
        put(("x-ms-content-crc64", &crc)).header("x-ms-content-crc64"),
        crc
    );
    assert_eq!(
        put(("x-ms-content-crc64", "AAAAAAAAAAA=")).code(),
        "Crc64Mismatch"
    );
    let get = c.call(
        "GET",
        "/box/b",
        &[("range", "bytes=0-8"), ("x-ms-range-get-content-md5", "true")],
        b"",
    );
    assert_eq!(get.header("content-md5"), "JfnnlDI7RTiF9RgfG2JNCw==");
}

#[test]
fn faults_are_injected_and_counted() {
    let c = Caller::new().with_container();
    c.put("b", b"x");
    c.store.reset_counters();
    c.store.record_requests(true);
    c.store.inject(FaultRule::nth(
        Operation::GetBlob,
        2,
        Fault::Answer {
            status: 503,
            code: "ServerBusy".into(),
            retry_after: Some(7),
        },
    ));
    let get = || c.call("GET", "/box/b", &[], b"");
    assert_eq!(get().status, 200);
    let busy = get();
    assert_eq!(
        (busy.status, busy.code(), busy.header("retry-after")),
        (503, "ServerBusy", "7")
    );
    assert_eq!(get().status, 200);
    let counters = c.store.counters(Operation::GetBlob);
    assert_eq!((counters.requests, counters.errors), (3, 1));
    assert_eq!(
        c.store.requests().iter().map(|r| r.status).collect::<Vec<_>>(),
        [200, 503, 200]
    );
    assert!(c.store.totals().bytes_out >= 2);
}

#[test]
fn blocks_of_other_types_and_lengths_are_refused() {
    let c = Caller::new().with_container();
    assert_eq!(c.stage("b", b"aa", b"x").status, 201);
    assert_eq!(c.stage("b", b"aaa", b"x").code(), "InvalidBlobOrBlock");
    assert_eq!(c.stage("b", b"", b"x").code(), "MissingRequiredQueryParameter");
    assert_eq!(c.stage("b", &[0; 65], b"x").code(), "OutOfRangeInput");
    assert_eq!(c.stage("b", b"bb", b"").code(), "InvalidHeaderValue");
    let head = c.call("HEAD", "/box/b", &[], b"");
    assert_eq!(head.code(), "BlobNotFound");
    let append = [("x-ms-blob-type", "AppendBlob")];
    assert_eq!(c.call("PUT", "/box/log", &append, b"").status, 201);
    assert_eq!(
        c.call("PUT", "/box/log?comp=appendblock", &[], b"one")
            .header("x-ms-blob-append-offset"),
        "0"
    );
    assert_eq!(
        c.call("PUT", "/box/log?comp=appendblock", &[], b"two")
            .header("x-ms-blob-append-offset"),
        "3"
    );
    assert_eq!(c.call("GET", "/box/log", &[], b"").body, b"onetwo");
    assert_eq!(c.stage("log", b"aa", b"x").code(), "InvalidBlobType");
    let page = [
        ("x-ms-blob-type", "PageBlob"),
        ("x-ms-blob-content-length", "1536"),
    ];
    assert_eq!(c.call("PUT", "/box/disk", &page, b"").status, 201);
    let write = [("x-ms-page-write", "update"), ("x-ms-range", "bytes=512-1023")];
    assert_eq!(
        c.call("PUT", "/box/disk?comp=page", &write, &[7; 512]).status,
        201
    );
    let body = c.call("GET", "/box/disk", &[], b"").body;
    assert_eq!(body, [[0u8; 512], [7; 512], [0; 512]].concat());
}

/// What a client may do to the blocks of one blob.
#[derive(Debug, Clone)]
enum Step {
    Stage(u8, Vec<u8>),
    /// Which lookup (0 committed, 1 uncommitted, 2 latest) and which id.
    Commit(Vec<(u8, u8)>),
    Put(Vec<u8>),
    Delete,
}

fn step() -> impl Strategy<Value = Step> {
    let body = proptest::collection::vec(any::<u8>(), 1..6);
    prop_oneof![
        4 => (0u8..4, body.clone()).prop_map(|(id, body)| Step::Stage(id, body)),
        4 => proptest::collection::vec((0u8..3, 0u8..4), 0..5).prop_map(Step::Commit),
        1 => body.prop_map(Step::Put),
        1 => Just(Step::Delete),
    ]
}

/// The rules of block lists in the simplest words.
#[derive(Default)]
struct Model {
    blob: Option<Vec<(Option<u8>, Vec<u8>)>>,
    staged: BTreeMap<u8, Vec<u8>>,
}

impl Model {
    fn committed(&self, id: u8) -> Option<Vec<u8>> {
        self.blob
            .as_ref()?
            .iter()
            .rev()
            .find(|(i, _)| *i == Some(id))
            .map(|(_, body)| body.clone())
    }
    fn apply(&mut self, step: &Step) -> u16 {
        match step {
            Step::Stage(id, body) => {
                self.staged.insert(*id, body.clone());
                201
            }
            Step::Commit(list) => {
                let blocks: Option<Vec<_>> = list
                    .iter()
                    .map(|(from, id)| {
                        let body = match from {
                            0 => self.committed(*id),
                            1 => self.staged.get(id).cloned(),
                            _ => self.staged.get(id).cloned().or_else(|| self.committed(*id)),
                        };
                        body.map(|body| (Some(*id), body))
                    })
                    .collect();
                match blocks {
                    None => 400,
                    Some(blocks) => {
                        self.blob = Some(blocks);
                        self.staged.clear();
                        201
                    }
                }
            }
            Step::Put(body) => {
                self.blob = Some(vec![(None, body.clone())]);
                self.staged.clear();
                201
            }
            Step::Delete if self.blob.is_none() => 404,
            Step::Delete => {
                *self = Self::default();
                202
            }
        }
    }
}

/// A block as Get Block List writes it.
fn listed(id: u8, body: &[u8]) -> String {
    format!(
        "<Block><Name>{}</Name><Size>{}</Size></Block>",
        base64(&[id]),
        body.len()
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn block_lists_follow_the_model(
        steps in proptest::collection::vec(step(), 1..25),
        folder in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { folder: folder.then(|| dir.path().to_owned()), ..Default::default() };
        let c = Caller::over(BlobStore::new(config.clone()).unwrap()).with_container();
        let mut model = Model::default();
        for step in &steps {
            let status = match step {
                Step::Stage(id, body) => c.stage("b", &[*id], body).status,
                Step::Commit(list) => {
                    let entries: String = list.iter().map(|(from, id)| {
                        let tag = ["Committed", "Uncommitted", "Latest"][*from as usize];
                        format!("<{tag}>{}</{tag}>", base64(&[*id]))
                    }).collect();
                    let list = format!("<BlockList>{entries}</BlockList>");
                    c.call("PUT", "/box/b?comp=blocklist", &[], list.as_bytes()).status
                }
                Step::Put(body) => c.put("b", body).status,
                Step::Delete => c.call("DELETE", "/box/b", &[], b"").status,
            };
            prop_assert_eq!(status, model.apply(step), "{:?}", step);
            let get = c.call("GET", "/box/b", &[], b"");
            match &model.blob {
                None => prop_assert_eq!(get.status, 404),
                Some(blocks) => {
                    let flat: Vec<u8> = blocks.iter().flat_map(|(_, body)| body.clone()).collect();
                    prop_assert_eq!(get.body, flat);
                }
            }
            let list = c.call("GET", "/box/b?comp=blocklist&blocklisttype=all", &[], b"");
            if model.blob.is_none() && model.staged.is_empty() {
                prop_assert_eq!(list.status, 404);
            } else {
                let mut wanted = String::from("<BlockList><CommittedBlocks>");
                for (id, body) in model.blob.iter().flatten() {
                    if let Some(id) = id {
                        wanted.push_str(&listed(*id, body));
                    }
                }
                wanted.push_str("</CommittedBlocks><UncommittedBlocks>");
                for (id, body) in &model.staged {
                    wanted.push_str(&listed(*id, body));
                }
                wanted.push_str("</UncommittedBlocks></BlockList>");
                prop_assert!(list.text().ends_with(&wanted), "{} / {}", list.text(), wanted);
            }
        }
        if folder {
            // A restart keeps exactly what was committed.
            let before = c.call("GET", "/box/b", &[], b"");
            drop(c);
            let c = Caller::over(BlobStore::new(config).unwrap());
            let after = c.call("GET", "/box/b", &[], b"");
prop_assert_eq!((after.status, after.header("etag")), (before.status, before.header("etag")));
            if before.status == 200 {
                prop_assert_eq!(&after.body, &before.body);
            }
        }
    }
}

#[test]
fn a_folder_keeps_metadata_and_sweeps_what_nobody_uses() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        folder: Some(dir.path().to_owned()),
        ..Default::default()
    };
    let data_files = || {
        let mut n = 0;
        for shard in std::fs::read_dir(dir.path().join("data")).unwrap() {
            n += std::fs::read_dir(shard.unwrap().path()).unwrap().count();
        }
        n
    };
    let c = Caller::over(BlobStore::new(config.clone()).unwrap()).with_container();
    c.call(
        "PUT",
        "/box/b",
        &[("x-ms-blob-type", "BlockBlob"), ("x-ms-meta-k", "v")],
        b"one",
    );
    c.call(
        "PUT",
        "/box/b",
        &[("x-ms-blob-type", "BlockBlob"), ("x-ms-meta-k", "w")],
        b"two",
    );
    c.put("c", b"gone");
    c.call("DELETE", "/box/c", &[], b"");
    c.stage("d", b"1", b"staged only");
    assert_eq!(data_files(), 2, "one committed, one staged");
    drop(c);
    assert_eq!(data_files(), 2, "closing removes nothing");
    let c = Caller::over(BlobStore::new(config.clone()).unwrap());
    assert_eq!(data_files(), 1, "staged blocks do not survive");
    let get = c.call("GET", "/box/b", &[], b"");
    assert_eq!((&get.body[..], get.header("x-ms-meta-k")), (&b"two"[..], "w"));
    assert_eq!(c.call("GET", "/box/c", &[], b"").status, 404);
    c.call("DELETE", "/box?restype=container", &[], b"");
    drop(c);
    let c = Caller::over(BlobStore::new(config).unwrap());
    assert_eq!(
        c.call("GET", "/box?restype=container", &[], b"").code(),
        "ContainerNotFound"
    );
    assert_eq!(data_files(), 0);
}

/// A write that found its container before somebody deleted it must not leave a description in the folder:
/// the data it names goes with the store, and the folder could not be opened again.
#[test]
fn a_write_that_races_the_containers_deletion_leaves_nothing_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        folder: Some(dir.path().to_owned()),
        ..Default::default()
    };
    let c = Caller::over(BlobStore::new(config.clone()).unwrap()).with_container();
    c.put("b", b"content");
    let container = c.store.container("box").unwrap();
    let blob = container.with_existing("b", |state| state.unwrap().blob.clone().unwrap());
    c.call("DELETE", "/box?restype=container", &[], b"");
    let late = container.with_slot("b", |state| {
        c.store.commit(&container, "b", state, (*blob).clone())
    });
    assert_eq!(late.unwrap_err().code, "ContainerNotFound");
    c.store.create_container("box").unwrap();
    drop((container, blob, c));

    // What a store left that ended between the two halves of a deletion.
    let orphan = dir.path().join("blobs").join("0".repeat(64));
    std::fs::create_dir_all(orphan.join("aa")).unwrap();
    std::fs::write(orphan.join("aa/b.json"), "{}").unwrap();
    let c = Caller::over(BlobStore::new(config).unwrap());
    assert_eq!(c.call("GET", "/box/b", &[], b"").code(), "BlobNotFound");
    assert!(!orphan.exists());
}
