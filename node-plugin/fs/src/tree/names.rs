//! Names: file names <-> blob names.
//!
//! The rule, also stated in docs/semantics.md:
//!
//! - A file's blob is named like its path: components joined by `/`, below the volume's prefix. Spaces, `%`,
//!   `+`, quotes and every other Unicode character stand for themselves.
//! - A few characters cannot be in a blob's name, or not at its end: control characters (a listing cannot
//!   carry them), `\` (the service turns it into `/`), and `.` at the end of a component (the service drops
//!   it). They are replaced by the look-alikes that rclone uses: U+2400 + code (U+2421 for DEL), U+FF3C and
//!   U+FF0E. A file name that itself holds a look-alike, or the quote character U+201B, gets a U+201B in
//!   front of it. Nothing else is changed.
//! - File names that are not UTF-8 cannot be blob names: `EILSEQ`. So are the non-characters U+FFFE and
//!   U+FFFF. A component over 255 bytes or a blob name over 1,024 characters: `ENAMETOOLONG`.
//! - Blobs of others whose names are no paths are hidden, and the listing goes on: empty components (`a//b`,
//!   a leading `/`), the components `.` and `..`, components over 255 bytes or with a non-character, and
//!   components with a raw control character, a raw `\` or a raw `.` at the end (their look-alike is a
//!   different blob). A directory that holds a hidden blob is not empty: `rmdir` says `ENOTEMPTY` rather than
//!   deleting what nobody can see.
//! - `d/` (a blob whose name ends with `/`) is a marker of the directory `d`, as some tools write it, and not
//!   an entry of its own.
//! - Where both a blob `a` that is no marker and blobs below `a/` exist, the directory is shown and the file
//!   is hidden.
//! - Names in the volume's root that begin with `.vsc-blob-hidden.` are reserved for blobs deleted while
//!   open: never shown, and creating one is refused with `EPERM`.

use std::borrow::Cow;

use uuid::Uuid;

use crate::errno::{Result, fail};

/// Longest component in bytes (`NAME_MAX`, as `statfs` says).
pub(crate) const MAX_COMPONENT: usize = 255;
/// Longest blob name in characters (REST: "Naming and referencing containers, blobs, and metadata"), which
/// the service counts as UTF-16 does.
pub(crate) const MAX_BLOB_NAME: usize = 1024;
/// Beginning of reserved names in the root of a volume.
pub(crate) const HIDDEN: &str = ".vsc-blob-hidden.";
/// Beginning of the name of a file that is being exchanged, likewise.
const EXCHANGE: &str = ".vsc-blob-exchange.";

/// No name has them.
const NON_CHARACTERS: [char; 2] = ['\u{FFFE}', '\u{FFFF}'];

const QUOTE: char = '\u{201B}';
const BACKSLASH: char = '\u{FF3C}';
const DOT: char = '\u{FF0E}';

/// A file name as the kernel gives it, checked: UTF-8, representable, not too long.
pub(crate) fn checked(name: &std::ffi::OsStr) -> Result<&str> {
    if name.len() > MAX_COMPONENT {
        return fail(libc::ENAMETOOLONG);
    }
    match name.to_str() {
        Some(name) if !name.contains(NON_CHARACTERS) => Ok(name),
        _ => fail(libc::EILSEQ),
    }
}

/// Stand-in of a character that cannot be in a blob name.
fn stand_in(c: char, last: bool) -> Option<char> {
    match c {
        '\0'..='\u{1F}' => char::from_u32(0x2400 + c as u32),
        '\u{7F}' => Some('\u{2421}'),
        '\\' => Some(BACKSLASH),
        '.' if last => Some(DOT),
        _ => None,
    }
}

/// The character a stand-in stands for.
fn original(c: char, last: bool) -> Option<char> {
    match c {
        '\u{2400}'..='\u{241F}' => char::from_u32(c as u32 - 0x2400),
        '\u{2421}' => Some('\u{7F}'),
        BACKSLASH => Some('\\'),
        DOT if last => Some('.'),
        _ => None,
    }
}

/// The blob component of a file name.
pub(crate) fn encode(name: &str) -> Cow<'_, str> {
    let mut rest = name.char_indices().peekable();
    let mut out: Option<String> = None;
    while let Some((at, c)) = rest.next() {
        let last = rest.peek().is_none();
        let replaced = match stand_in(c, last) {
            Some(s) => [None, Some(s)],
            None if c == QUOTE || original(c, last).is_some() => [Some(QUOTE), Some(c)],
            None => {
                if let Some(out) = &mut out {
                    out.push(c);
                }
                continue;
            }
        };
        out.get_or_insert_with(|| name[..at].to_owned())
            .extend(replaced.into_iter().flatten());
    }
    out.map_or(Cow::Borrowed(name), Cow::Owned)
}

fn decode(blob: &str) -> Cow<'_, str> {
    if !blob.contains(|c| c == QUOTE || original(c, true).is_some()) {
        return Cow::Borrowed(blob);
    }
    let mut out = String::with_capacity(blob.len());
    let mut chars = blob.chars().peekable();
    while let Some(c) = chars.next() {
        let last = chars.peek().is_none();
        if c == QUOTE
            && let Some(quoted) = chars.next()
        {
            out.push(quoted);
        } else {
            out.push(original(c, last).unwrap_or(c));
        }
    }
    Cow::Owned(out)
}

/// The file name of a blob component, or `None` when it is hidden.
pub(crate) fn shown(component: &str, in_root: bool) -> Option<Cow<'_, str>> {
    let name = decode(component);
    let ordinary = !name.is_empty()
        && name != "."
        && name != ".."
        && name.len() <= MAX_COMPONENT
        && !name.contains(['/', '\0'])
        && !name.contains(NON_CHARACTERS)
        // Only names that lead back to the same blob: else an operation would hit another one.
        && encode(&name) == component;
    (ordinary && !(in_root && is_reserved(&name))).then_some(name)
}

/// True for names that only this file system makes, in the root of a volume.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with(HIDDEN)
}

/// A new name for one of two files while they are exchanged. Shown like any other: if the exchange is cut
/// off, it is where the file is.
pub(crate) fn exchange() -> String {
    format!("{EXCHANGE}{}", Uuid::new_v4().simple())
}

/// True for names in the root of a volume that a file has while it is exchanged.
pub(crate) fn is_exchange(name: &str) -> bool {
    name.starts_with(EXCHANGE)
}

/// True for the names that [`hidden`] makes.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN) && !name.contains('/')
}

/// A new reserved name.
pub(crate) fn hidden() -> String {
    format!("{HIDDEN}{}", Uuid::new_v4().simple())
}

/// `directory` + `/` + the blob component of `name`; `directory` empty = top of the container.
pub(crate) fn join(directory: &str, name: &str) -> String {
    let component = encode(name);
    if directory.is_empty() {
        component.into_owned()
    } else {
        format!("{directory}/{component}")
    }
}

/// What all names below a directory begin with.
pub(crate) fn below(directory: &str) -> String {
    if directory.is_empty() {
        String::new()
    } else {
        format!("{directory}/")
    }
}

/// `ENAMETOOLONG` for a blob name the service would refuse.
pub(crate) fn check_blob(blob: &str) -> Result<()> {
    if blob.encode_utf16().count() > MAX_BLOB_NAME {
        fail(libc::ENAMETOOLONG)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_themselves() {
        for name in [
            "a",
            "a b",
            "100%",
            "%2F",
            "a+b",
            "ümläut",
            "日本語",
            ".hidden",
            "a.b",
            "'\"&<>",
            "~",
            "..a",
            "😀",
        ] {
            assert_eq!(encode(name), name);
            assert_eq!(shown(name, false).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_a_blob_cannot_hold_is_replaced() {
        assert_eq!(encode("a\\b"), "a\u{FF3C}b");
        assert_eq!(encode("a."), "a\u{FF0E}");
        assert_eq!(encode("a.b."), "a.b\u{FF0E}");
        assert_eq!(encode("..."), "..\u{FF0E}");
        assert_eq!(encode("a\nb\u{7F}"), "a\u{240A}b\u{2421}");
        assert_eq!(encode("a\u{FF3C}"), "a\u{201B}\u{FF3C}");
        assert_eq!(encode("\u{201B}"), "\u{201B}\u{201B}");
    }

    #[test]
    fn blobs_that_are_no_paths_are_hidden() {
        for component in [
            "",
            ".",
            "..",
            "a.",
            "a\\b",
            "a\nb",
            "x\0",
            "a\u{FFFE}",
            &"é".repeat(128),
        ] {
            assert_eq!(shown(component, false), None, "{component:?}");
        }
        assert!(shown(&"é".repeat(127), false).is_some());
        assert_eq!(shown(".vsc-blob-hidden.1", true), None);
        assert!(shown(".vsc-blob-hidden.1", false).is_some());
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(checked(OsStr::from_bytes(b"\xff")).unwrap_err().0, libc::EILSEQ);
        assert_eq!(
            checked(OsStr::new(&"a".repeat(256))).unwrap_err().0,
            libc::ENAMETOOLONG
        );
        assert!(checked(OsStr::new(&"a".repeat(255))).is_ok());
        assert!(check_blob(&"é".repeat(1024)).is_ok());
        assert_eq!(check_blob(&"é".repeat(1025)).unwrap_err().0, libc::ENAMETOOLONG);
        // The service counts UTF-16 units.
        assert!(check_blob(&"😀".repeat(512)).is_ok());
        assert_eq!(check_blob(&"😀".repeat(513)).unwrap_err().0, libc::ENAMETOOLONG);
    }

    #[test]
    fn joining() {
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a/b", "c."), "a/b/c\u{FF0E}");
        assert_eq!(below(""), "");
        assert_eq!(below("a"), "a/");
    }

    /// Names of any characters, with those that need care much more often than chance gives.
    fn name() -> impl Strategy<Value = String> {
        let c = prop_oneof![
            any::<char>(),
            prop::sample::select(vec![
                '.', '\\', '\n', '\u{7F}', QUOTE, BACKSLASH, DOT, '\u{2400}', '\u{2421}', 'a'
            ]),
        ];
        prop::collection::vec(c, 1..12)
            .prop_map(|cs| cs.into_iter().filter(|c| !matches!(c, '/' | '\0')).collect())
    }

    proptest! {
        #[test]
        fn every_name_leads_to_a_blob_and_back(name in name()) {
            prop_assume!(!name.is_empty() && name != "." && name != "..");
            let blob = encode(&name).into_owned();
            prop_assert!(!blob.contains(|c: char| c.is_ascii_control() || c == '\\'));
            prop_assert!(!blob.ends_with('.'));
            let back = shown(&blob, false);
            prop_assert_eq!(back.as_deref(), Some(name.as_str()));
        }

        #[test]
        fn every_blob_is_hidden_or_leads_back_to_itself(blob in name()) {
            if let Some(name) = shown(&blob, false) {
                let back = encode(&name).into_owned();
                prop_assert_eq!(&back, &blob);
            }
        }

        #[test]
        fn different_names_are_different_blobs(a in name(), b in name()) {
            prop_assert_eq!(a == b, encode(&a) == encode(&b));
        }
    }
}
