//! The cycle check sees what it should: small crates with one edge each, and the real ones with one wrong
//! `use`.

use std::fs;
use std::path::Path;

use crate::graph::Graph;
use crate::modules::{self, Sources};
use crate::rules::{CRATES, NODE_PLUGIN, repository};

/// The edges of a crate that is given as its files.
fn edges(files: &[(&str, &str)]) -> Vec<String> {
    let sources: Sources = files
        .iter()
        .map(|(name, text)| (name.into(), (*text).to_owned()))
        .collect();
    let graph = Graph::of(&sources).unwrap();
    graph
        .edges()
        .map(|(from, to)| format!("{} -> {}", from.display(), to.display()))
        .collect()
}

const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b;");

#[test]
fn an_import_is_an_edge_however_it_is_written() {
    for a in [
        "use crate::b::Thing;",
        "use crate::b;",
        "use crate::b::*;",
        "use crate::{b::{self, Thing}};",
        "use super::b::Thing as Other;",
        "pub(crate) use super::b::Thing;",
        "fn f() { use crate::b::Thing; }",
        "fn f() -> crate::b::Thing { todo() }",
        "fn f() { let x = super::b::Thing; }",
        "fn f() { println!(\"{:?}\", [1, crate::b::Thing]); }",
        "mod inner { use super::super::b::Thing; }",
        "mod inner { use crate::b::Thing; }",
    ] {
        let files = [ROOT, ("a.rs", a), ("b.rs", "pub struct Thing;")];
        assert_eq!(edges(&files), ["a.rs -> b.rs"], "{a}");
    }
}

#[test]
fn what_imports_nothing_is_no_edge() {
    for a in [
        "",
        "use bytes::Bytes;",
        "use ::b::Thing;",
        "mod inner { pub struct Thing; } use inner::Thing;",
        "#[cfg(test)] use crate::b::Thing;",
        "#[cfg(test)] mod tests { use crate::b::Thing; }",
        "#[cfg(test)] fn f() -> crate::b::Thing { todo() }",
        "struct S; impl S { #[cfg(test)] fn f() -> crate::b::Thing { todo() } }",
        "pub(in crate::b) struct S;",
        "// use crate::b::Thing;",
        "const S: &str = \"crate::b::Thing\";",
        "use time::time; fn f() { time::now() }",
    ] {
        let files = [ROOT, ("a.rs", a), ("b.rs", "pub struct Thing;")];
        assert_eq!(edges(&files), [""; 0], "{a}");
    }
}

#[test]
fn a_reexport_leads_to_the_definition() {
    for root in [
        "mod a; mod b; pub use b::Thing;",
        "mod a; mod b; pub use crate::b::Thing;",
    ] {
        let files = [
            ("lib.rs", root),
            ("a.rs", "use crate::Thing;"),
            ("b.rs", "pub struct Thing;"),
        ];
        assert_eq!(edges(&files), ["a.rs -> b.rs", "lib.rs -> b.rs"], "{root}");
    }
    for root in ["mod a; mod b; pub use self::b::b;", "mod a; mod b; pub use b::b;"] {
        let files = [
            ("lib.rs", root),
            ("a.rs", "use crate::b; fn f() { b::c() }"),
            ("b.rs", "pub fn b() {}"),
        ];
        assert_eq!(edges(&files), ["a.rs -> b.rs", "lib.rs -> b.rs"], "{root}");
    }
    let through = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::{Thing, run};"),
        (
            "b/mod.rs",
            "mod c; pub use self::c::*; pub use self::c::run::run;",
        ),
        ("b/c.rs", "pub mod run; pub struct Thing;"),
        ("b/c/run.rs", "pub fn run() {}"),
    ];
    assert_eq!(
        edges(&through),
        [
            "a.rs -> b/c/run.rs",
            "a.rs -> b/c.rs",
            "b/mod.rs -> b/c/run.rs",
            "b/mod.rs -> b/c.rs"
        ]
    );
}

#[test]
fn a_parent_that_uses_its_child_is_an_edge_and_its_mod_line_is_none() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod b; struct S(b::Thing);"),
        ("a/b.rs", "pub struct Thing;"),
    ];
    assert_eq!(edges(&files), ["a.rs -> a/b.rs"]);
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod b; struct S;"),
        ("a/b.rs", "use super::S;"),
    ];
    assert_eq!(edges(&files), ["a/b.rs -> a.rs"]);
}

#[test]
fn a_cycle_is_told_with_its_lines() {
    let sources: Sources = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "//! A.\nuse crate::b::B;\npub struct A;"),
        ("b.rs", "use crate::c::C;\npub struct B;"),
        ("c.rs", "pub struct C(crate::a::A);"),
        ("d.rs", "use crate::a::A;"),
    ]
    .into_iter()
    .map(|(name, text)| (name.into(), text.to_owned()))
    .collect();
    let graph = Graph::of(&sources).unwrap();
    let cycles = graph.cycles();
    assert_eq!(cycles.len(), 1);
    assert_eq!(
        graph.describe(&cycles[0], &sources),
        "a cycle of 3 files\n  a.rs:2 -> b.rs: use crate::b::B;\n  b.rs:1 -> c.rs: use crate::c::C;\n  \
         c.rs:1 -> a.rs: pub struct C(crate::a::A);\n"
    );
}

#[test]
fn a_cycle_of_folders_is_told_with_the_lines_that_cross() {
    let sources: Sources = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a/mod.rs", "mod x; mod y;"),
        ("a/x.rs", "use super::y::Y;\npub struct X(crate::b::B);"),
        ("a/y.rs", "pub struct Y(super::x::X);"),
        ("b.rs", "mod deep; pub struct B;"),
        ("b/deep.rs", "use super::B;\nuse crate::a::y::Y;"),
        ("c.rs", "use crate::b::B;"),
    ]
    .into_iter()
    .map(|(name, text)| (name.into(), text.to_owned()))
    .collect();
    let graph = Graph::of(&sources).unwrap();
    assert_eq!(
        graph.folder_cycles(&sources),
        [
            "a cycle of 4 files\n  a/x.rs:2 -> b.rs: pub struct X(crate::b::B);\n  b/deep.rs:2 -> a/y.rs: \
             use crate::a::y::Y;\n"
        ]
    );
}

/// The mutant: mounts that know the services above them.
#[test]
fn one_wrong_use_between_folders_is_found() {
    let mut sources = modules::read(&repository().join(NODE_PLUGIN)).unwrap();
    let file = Path::new("mounts/manager.rs");
    let wrong = "use crate::csi::node::NodeService as wrong;";
    let text = format!("{}\n{wrong}\n", sources[file]);
    sources.insert(file.to_path_buf(), text);
    let told = Graph::of(&sources).unwrap().folder_cycles(&sources);
    assert!(told.iter().any(|text| text.contains(wrong)), "{told:?}");
}

/// The mutant: each crate with one `use` that turns an edge into a cycle.
#[test]
fn one_wrong_use_in_a_real_crate_is_found() {
    for name in CRATES {
        let copy = tempfile::tempdir().unwrap();
        let mut sources = modules::read(&repository().join(name)).unwrap();
        let graph = Graph::of(&sources).unwrap();
        let cycles = graph.cycles();
        // A program's modules have another root, what a root defines has no module's name, and an edge of a
        // cycle is none to turn.
        let named = |file: &Path| !file.starts_with("bin") && file != Path::new("lib.rs");
        let suits = |(from, to): &(&Path, &Path)| {
            let turned = cycles
                .iter()
                .any(|cycle| cycle.contains(*from) && cycle.contains(*to));
            named(from) && named(to) && !turned
        };
        let (from, to) = graph.edges().find(suits).expect(name);
        let module: Vec<_> = from
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        let module = module.join("::");
        let module = module.strip_suffix("::mod").unwrap_or(&module);
        let wrong = format!("{}\nuse crate::{module} as wrong;\n", sources[to]);
        *sources.get_mut(to).unwrap() = wrong;
        for (file, text) in &sources {
            let file = copy.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let sources = modules::read(copy.path()).unwrap();
        let mutant = Graph::of(&sources).unwrap();
        let told: Vec<_> = mutant
            .cycles()
            .iter()
            .map(|cycle| mutant.describe(cycle, &sources))
            .collect();
        assert!(
            told.iter()
                .any(|text| text.contains(&format!("use crate::{module} as wrong;"))),
            "{told:?}"
        );
    }
}
