//! Bodies as the service and Azurite write them, and bodies as nobody should.

use proptest::prelude::*;

use super::*;

const PROPERTIES: &str = "<Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified>\
    <Etag>0x8DB</Etag><Content-Length>7</Content-Length><BlobType>BlockBlob</BlobType>\
    <Content-Type>text/plain</Content-Type><Content-MD5/></Properties>";

fn listing(blobs: &str, marker: &str) -> String {
    format!(
        "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"http://x/\" \
         ContainerName=\"c\"><Prefix/><Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker>\
         </EnumerationResults>"
    )
}

fn names(page: &ListPage) -> Vec<&str> {
    page.items
        .iter()
        .map(|item| match item {
            ListItem::Blob { name, .. } | ListItem::Prefix { name } => name.as_str(),
        })
        .collect()
}

#[test]
fn a_page_with_blobs_prefixes_and_metadata() {
    let body = listing(
        &format!(
            "<Blob><Name>a &amp; b</Name>{PROPERTIES}<Metadata><Hdi_IsFolder>true</Hdi_IsFolder><empty/>\
             </Metadata><OrMetadata/></Blob><BlobPrefix><Name>d/</Name></BlobPrefix>\
             <SomethingNew><Name>?</Name></SomethingNew>"
        ),
        "2!next",
    );
    let page = list_page(body.as_bytes()).unwrap();
    assert_eq!(page.next_marker.as_deref(), Some("2!next"));
    let ListItem::Blob { name, properties } = &page.items[0] else {
        panic!()
    };
    assert_eq!(name, "a & b");
    assert_eq!(properties.etag, ETag("\"0x8DB\"".into()));
    assert_eq!(properties.content_length, 7);
    assert_eq!(properties.stored.content_type(), "text/plain");
    assert_eq!(properties.metadata["hdi_isfolder"], "true");
    assert_eq!(properties.metadata["empty"], "");
    assert_eq!(page.items[1], ListItem::Prefix { name: "d/".into() });
    assert_eq!(page.items.len(), 2);
}

#[test]
fn names_are_taken_to_the_letter() {
    let body = listing(
        &[
            "<Name>  spaces  </Name>",
            "<Name>a//b/</Name>",
            "<Name>ctl&#x1;&#2;&#13;&#xA;</Name>",
            "<Name Encoded=\"true\">x%01%EF%BF%BF%25%2B</Name>",
            "<Name>not%20encoded+</Name>",
            "<Name><![CDATA[<raw> & ]]>tail</Name>",
            "<Name>raw\ttab\nline</Name>",
        ]
        .map(|name| format!("<Blob>{name}{PROPERTIES}</Blob>"))
        .concat(),
        "",
    );
    let page = list_page(body.as_bytes()).unwrap();
    assert_eq!(
        names(&page),
        [
            "  spaces  ",
            "a//b/",
            "ctl\u{1}\u{2}\r\n",
            "x\u{1}\u{ffff}%+",
            "not%20encoded+",
            "<raw> & tail",
            "raw\ttab\nline",
        ]
    );
    assert_eq!(page.next_marker, None);
}

#[test]
fn directories_of_hierarchical_accounts() {
    let body = listing(
        "<Blob><Name>dir</Name><Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified>\
         <Etag>0x1</Etag><ResourceType>directory</ResourceType><Content-Length/></Properties></Blob>",
        "",
    );
    let page = list_page(body.as_bytes()).unwrap();
    let ListItem::Blob { properties, .. } = &page.items[0] else {
        panic!()
    };
    assert!(properties.is_directory);
    assert_eq!(properties.content_length, 0);
}

#[test]
fn a_bad_entry_is_an_error_that_says_which() {
    let good = format!("<Blob><Name>good</Name>{PROPERTIES}</Blob>");
    for (bad, why) in [
        ("<Blob><Name>bad</Name></Blob>", "has no Properties"),
        (
            &*format!("<Blob><Name>bad</Name>{}</Blob>", PROPERTIES.replace("0x8DB", "")),
            "has no Etag",
        ),
        (
            &*format!(
                "<Blob><Name>bad</Name>{}</Blob>",
                PROPERTIES.replace(">7<", ">many<")
            ),
            "Content-Length \"many\"",
        ),
        (
            &*format!(
                "<Blob><Name>bad</Name>{}</Blob>",
                PROPERTIES.replace("Nov", "Brumaire")
            ),
            "is no date",
        ),
        (
            &*format!("<Blob><Name Encoded=\"true\">bad%FF</Name>{PROPERTIES}</Blob>"),
            "UTF-8",
        ),
    ] {
        let error = list_page(listing(&format!("{good}{bad}"), "").as_bytes())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("entry 2") && error.contains("bad") && error.contains(why),
            "{error}"
        );
    }
    for broken in [
        "",
        "<EnumerationResults>",
        "<EnumerationResults><Blobs></EnumerationResults>",
        "<Other/>",
        "<EnumerationResults>&nope;</EnumerationResults>",
        "<EnumerationResults>&#xD800;</EnumerationResults>",
        &"<a>".repeat(100),
    ] {
        assert!(matches!(
            list_page(broken.as_bytes()),
            Err(Error::Malformed { .. })
        ));
    }
    assert!(list_page(b"\xff\xfe").is_err());
}

#[test]
fn block_lists() {
    let body =
        b"<BlockList><CommittedBlocks><Block><Name>AAE=</Name><Size>5</Size></Block></CommittedBlocks>\
                 <UncommittedBlocks><Block><Name>/w==</Name><Size>0</Size></Block>\
                 </UncommittedBlocks></BlockList>";
    let list = block_list(body).unwrap();
    assert_eq!(
        list.committed,
        [Block {
            id: BlockId(vec![0, 1]),
            size: 5
        }]
    );
    assert_eq!(
        list.uncommitted,
        [Block {
            id: BlockId(vec![255]),
            size: 0
        }]
    );
    assert_eq!(block_list(b"<BlockList/>").unwrap(), BlockList::default());
    let error = block_list(
        b"<BlockList><CommittedBlocks><Block><Name>?</Name><Size>1</Size></Block>\
          </CommittedBlocks></BlockList>",
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("CommittedBlocks 1"), "{error}");
    let sent = block_list_body(&[
        BlockRef::Committed(BlockId(vec![0, 1])),
        BlockRef::Uncommitted(BlockId(vec![255])),
        BlockRef::Latest(BlockId(b"x".to_vec())),
    ]);
    assert!(
        sent.ends_with(
            "<BlockList><Committed>AAE=</Committed><Uncommitted>/w==</Uncommitted>\
             <Latest>eA==</Latest></BlockList>"
        ),
        "{sent}"
    );
}

#[test]
fn error_bodies() {
    let body = b"<?xml version=\"1.0\"?><Error><Code>BlobNotFound</Code>\
        <Message>Not there.\nRequestId:1</Message></Error>";
    assert_eq!(
        error_body(body),
        Some(("BlobNotFound".into(), "Not there.".into()))
    );
    for none in [&b""[..], b"{\"error\":1}", b"<html><body/></html>", b"<Error>"] {
        assert_eq!(error_body(none), None);
    }
}

proptest! {
    #[test]
    fn any_name_survives(name in "\\PC{1,30}|[\\x01-\\x7f]{1,30}|[ /%+&<>\"']{1,10}") {
        // As a service writes it: the markup escaped, characters that XML forbids as references.
        let mut text = String::new();
        for c in name.chars() {
            match c {
                '&' => text.push_str("&amp;"),
                '<' => text.push_str("&lt;"),
                '>' => text.push_str("&gt;"),
                c if c.is_control() => text.push_str(&format!("&#x{:X};", u32::from(c))),
                c => text.push(c),
            }
        }
        let body = listing(&format!("<Blob><Name>{text}</Name>{PROPERTIES}</Blob>"), "");
        let page = list_page(body.as_bytes()).unwrap();
        prop_assert_eq!(names(&page), vec![name.as_str()]);
        let encoded = crate::names::encode_query(&name);
        let body = listing(&format!("<BlobPrefix><Name Encoded=\"true\">{encoded}</Name></BlobPrefix>"), "");
        let page = list_page(body.as_bytes()).unwrap();
        prop_assert_eq!(names(&page), vec![name.as_str()]);
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(list_page(&bytes).is_err());
        prop_assert!(block_list(&bytes).is_err());
        prop_assert_eq!(error_body(&bytes), None);
    }

    #[test]
    fn a_cut_listing_is_an_error(cut in 0_usize..400) {
        let body = listing(&format!("<Blob><Name>a</Name>{PROPERTIES}</Blob>"), "m");
        prop_assume!(cut < body.len());
        prop_assert!(list_page(&body.as_bytes()[..cut]).is_err());
    }
}

#[test]
fn the_end_of_a_document_is_its_roots() {
    for whole in [
        "<A></A>",
        "<?xml version='1.0'?><A x='>'/>\n",
        "<A />",
        "<A><B/></A >\r\n",
    ] {
        assert_eq!(check_end(whole.as_bytes(), "A"), Ok(()), "{whole}");
    }
    for cut in [
        "",
        "<A>",
        "<A></A",
        "<A><B/>",
        "<A><B></B>",
        "<AB></AB>",
        "text",
        "<A>text",
    ] {
        check_end(cut.as_bytes(), "A").unwrap_err();
    }
}
