//! Pages of a listing against a service that has more than fits.

use std::collections::HashMap;

use crate::client::Container;
use crate::client::tests::container;
use crate::error::Error;
use crate::transport::fake::{Fake, Step, answer};
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};
use crate::types::{ListItem, ListOptions, ListPage};

/// Blobs with so many bytes of metadata, as XML has it, in pages of what is asked for.
fn service(blobs: usize, metadata: usize) -> impl Fn(&Fake) {
    move |fake| {
        fake.will(Box::new(move |request| {
            let query: HashMap<_, _> =
                url::form_urlencoded::parse(request.url.query().unwrap_or_default().as_bytes())
                    .into_owned()
                    .collect();
            let number = |name: &str| query.get(name).map(|text| text.parse::<usize>().unwrap());
            let first = number("marker").unwrap_or(0);
            let end = blobs.min(first + number("maxresults").unwrap_or(5000));
            let mut body = String::from("<EnumerationResults><Blobs>");
            let metadata = "&amp;".repeat(metadata / 5);
            for blob in first..end {
                body.push_str(&format!(
                    "<Blob><Name>{blob}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT\
                     </Last-Modified><Etag>0x1</Etag><Content-Length>1</Content-Length></Properties>\
                     <Metadata><k>{metadata}</k></Metadata></Blob>"
                ));
            }
            let marker = if end < blobs {
                end.to_string()
            } else {
                String::new()
            };
            body.push_str(&format!(
                "</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
            ));
            if body.len() > request.collect {
                return Err(TransportError {
                    path: Path::Https,
                    kind: FailureKind::TooLong,
                    message: "the answer is longer".into(),
                    maybe_executed: true,
                    retryable: false,
                });
            }
            let step: Step = answer(200, &[], body.as_bytes());
            step(request)
        }));
    }
}

async fn page(c: &Container, marker: Option<String>) -> ListPage {
    let options = ListOptions {
        marker,
        metadata: true,
        ..ListOptions::default()
    };
    c.list(&options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn pages_that_are_too_long_are_asked_for_in_smaller_ones() {
    let fake = Fake::default();
    let c = container(&fake);
    // 8 KiB each, all of it escaped: 60 MiB.
    let asks = service(1500, 40 * 1024);
    for _ in 0..100 {
        asks(&fake);
    }
    let (mut names, mut marker) = (Vec::new(), None);
    loop {
        let page = page(&c, marker).await;
        names.extend(page.items.into_iter().map(|item| match item {
            ListItem::Blob { name, properties } => {
                assert_eq!(properties.metadata["k"].len(), 8 * 1024);
                name
            }
            ListItem::Prefix { name } => panic!("{name}"),
        }));
        marker = page.next_marker;
        if marker.is_none() {
            break;
        }
    }
    assert_eq!(names, (0..1500).map(|n| n.to_string()).collect::<Vec<_>>());
    // The length is found once, and not for each page.
    assert!(fake.sent().len() <= 3 + 1500 / 64 + 1, "{}", fake.sent().len());
}

/// Where blobs have little metadata again, pages are whole again.
#[tokio::test(start_paused = true)]
async fn pages_grow_again() {
    let fake = Fake::default();
    let c = container(&fake);
    let (long, short) = (service(1500, 40 * 1024), service(100_000, 10));
    for _ in 0..4 {
        long(&fake);
    }
    page(&c, None).await;
    let mut marker = None;
    for _ in 0..10 {
        short(&fake);
        marker = page(&c, marker).await.next_marker;
    }
    short(&fake);
    assert_eq!(page(&c, marker).await.items.len(), 5000);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_leads_to_itself_ends_the_listing() {
    let fake = Fake::default();
    let same = "<EnumerationResults><Blobs/><NextMarker>m</NextMarker></EnumerationResults>";
    fake.will(answer(200, &[], same.as_bytes()))
        .will(answer(200, &[], same.as_bytes()));
    let c = container(&fake);
    let next = page(&c, None).await.next_marker;
    let again = ListOptions {
        marker: next,
        ..ListOptions::default()
    };
    let error = c.list(&again).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

/// A list that breaks off was lost on its way, whatever its length says.
#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_is_asked_for_again() {
    let fake = Fake::default();
    let whole = b"<EnumerationResults><Blobs/><NextMarker>m</NextMarker></EnumerationResults>";
    for cut in [0, 20, whole.len() - 1] {
        fake.will(answer(200, &[], &whole[..cut]));
    }
    fake.will(answer(200, &[], whole));
    let c = container(&fake);
    assert_eq!(page(&c, None).await.next_marker.as_deref(), Some("m"));
    assert!(fake.nothing_left());
    // Of a list of blocks, too.
    fake.will(answer(200, &[], b"<BlockList><CommittedBlocks/>"))
        .will(answer(200, &[], b"<BlockList />"));
    assert!(c.block_list("b").await.unwrap().committed.is_empty());
    assert!(fake.nothing_left());
}
