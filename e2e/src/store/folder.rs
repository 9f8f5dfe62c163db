//! The folder behind a store: committed state survives a restart.
//!
//! ```text
//! FOLDER/containers/<sha256 of name>.json          container: name, version, metadata
//! FOLDER/blobs/<container>/<xx>/<sha256>.json      committed version of a blob: properties and its blocks
//! FOLDER/data/<xx>/<uuid>                          bytes of one block; written once, removed with its last
//!                                                  user
//! ```
//! Description files are replaced atomically (written beside, then renamed). Data no description names is
//! swept at start, and so are blobs of containers that are not there.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::attributes::Attributes;
use super::block_file::BlockFile;
use super::content::{Block, BlockRun, Content, Piece};
use super::encoding::{base64, unbase64};
use super::headers::{ContentHeaders, Metadata};
use super::state::{Blob, BlobKind, Container, ContainerState, CopyInfo, PublicAccess};
use super::version::Version;

/// A folder that holds a store.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Set when the store goes away: from then on dropped data stays on disk.
    closing: Arc<AtomicBool>,
}

#[derive(Serialize, Deserialize)]
struct ContainerFile {
    name: String,
    version: u64,
    metadata: Metadata,
    public: PublicAccess,
}

#[derive(Serialize, Deserialize)]
struct BlobFile {
    name: String,
    version: u64,
    created: u64,
    kind: BlobKind,
    headers: ContentHeaders,
    metadata: Metadata,
    copy: Option<CopyInfo>,
    #[serde(default)]
    attributes: Attributes,
    blocks: Vec<BlockEntry>,
}

#[derive(Serialize, Deserialize)]
struct BlockEntry {
    /// Base64.
    id: String,
    pieces: Vec<PieceEntry>,
}

#[derive(Serialize, Deserialize)]
enum PieceEntry {
    File { name: String, offset: u64, len: u64 },
    Zeros(u64),
}

/// What a folder held: containers, each with its blobs.
pub(super) type Loaded = Vec<(Container, Vec<(String, Blob)>)>;

impl Folder {
    /// Opens (or makes) a folder and reads what it holds.
    pub(super) fn open(root: &Path) -> io::Result<(Self, Loaded)> {
        let folder = Self {
            root: root.to_owned(),
            closing: Arc::default(),
        };
        for sub in ["containers", "blobs", "data"] {
            std::fs::create_dir_all(root.join(sub))?;
        }
        let mut files = HashMap::new();
        let mut out = Loaded::new();
        for path in files_below(&root.join("containers"))? {
            let Some(file) = read_json::<ContainerFile>(&path)? else {
                continue;
            };
            let state = ContainerState {
                version: Version(file.version),
                metadata: file.metadata,
                public: file.public,
                lease: Default::default(),
                immutability: None,
            };
            let mut blobs = Vec::new();
            for path in files_below(&folder.blobs_of(&file.name))? {
                if let Some(blob) = read_json::<BlobFile>(&path)? {
                    blobs.push((blob.name.clone(), folder.load_blob(blob, &mut files)?));
                }
            }
            out.push((Container::new(file.name, state), blobs));
        }
        // Left by a store that ended while it deleted a container: nobody can name these blobs any more.
        let known: HashSet<PathBuf> = out.iter().map(|(c, _)| folder.blobs_of(&c.name)).collect();
        for entry in std::fs::read_dir(root.join("blobs"))? {
            let path = entry?.path();
            if !known.contains(&path) {
                std::fs::remove_dir_all(&path)?;
            }
        }
        let used: HashSet<&Path> = files.values().map(|file| file.path.as_path()).collect();
        for path in files_below(&root.join("data"))? {
            if !used.contains(path.as_path()) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok((folder, out))
    }

    fn load_blob(&self, file: BlobFile, files: &mut HashMap<String, Arc<BlockFile>>) -> io::Result<Blob> {
        let mut blocks = Vec::with_capacity(file.blocks.len());
        for entry in file.blocks {
            let mut content = Content::default();
            for piece in entry.pieces {
                content.push(match piece {
                    PieceEntry::Zeros(len) => Piece::Zeros(len),
                    PieceEntry::File { name, offset, len } => {
                        let file = match files.get(&name) {
                            Some(file) => file.clone(),
                            None => {
                                let file = Arc::new(self.block_file(name.clone(), false)?);
                                files.insert(name, file.clone());
                                file
                            }
                        };
                        Piece::File { file, offset, len }
                    }
                });
            }
            let id = unbase64(&entry.id).ok_or_else(|| damaged(&self.root, "a block id is not base64"))?;
            blocks.push(Arc::new(Block { id, content }));
        }
        Ok(Blob {
            version: Version(file.version),
            created: Version(file.created),
            kind: file.kind,
            content: BlockRun::new(blocks),
            headers: file.headers,
            metadata: Arc::new(file.metadata),
            copy: file.copy.map(Arc::new),
            attributes: file.attributes,
        })
    }

    fn block_file(&self, name: String, create: bool) -> io::Result<BlockFile> {
        let path = self
            .root
            .join("data")
            .join(&name[..2.min(name.len())])
            .join(&name);
        if create && let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::options()
            .read(true)
            .write(create)
            .create_new(create)
            .open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(BlockFile {
            name,
            path,
            file,
            closing: self.closing.clone(),
        })
    }

    /// Writes a body to a data file of its own; what is answered reads from there.
    pub(super) fn keep(&self, content: Content) -> io::Result<Content> {
        let in_memory: u64 = content
            .pieces()
            .iter()
            .map(|piece| match piece {
                Piece::Memory(bytes) => bytes.len() as u64,
                _ => 0,
            })
            .sum();
        if in_memory == 0 {
            return Ok(content);
        }
        let file = Arc::new(self.block_file(uuid::Uuid::new_v4().simple().to_string(), true)?);
        let mut out = Content::default();
        let mut at = 0;
        let mut writer = &file.file;
        for piece in content.into_pieces() {
            match piece {
                Piece::Memory(bytes) => {
                    writer.write_all(&bytes)?;
                    out.push(Piece::File {
                        file: file.clone(),
                        offset: at,
                        len: bytes.len() as u64,
                    });
                    at += bytes.len() as u64;
                }
                other => out.push(other),
            }
        }
        Ok(out)
    }

    /// Saves a container's description.
    pub(super) fn save_container(&self, name: &str, state: &ContainerState) -> io::Result<()> {
        write_json(
            &self.container_path(name),
            &ContainerFile {
                name: name.to_owned(),
                version: state.version.0,
                metadata: state.metadata.clone(),
                public: state.public,
            },
        )
    }

    /// Forgets a container and all its blobs.
    pub(super) fn remove_container(&self, name: &str) -> io::Result<()> {
        remove_if_there(std::fs::remove_file(self.container_path(name)))?;
        remove_if_there(std::fs::remove_dir_all(self.blobs_of(name)))
    }

    /// Saves a blob's description.
    pub(super) fn save_blob(&self, container: &str, name: &str, blob: &Blob) -> io::Result<()> {
        let blocks = blob
            .content
            .blocks()
            .iter()
            .map(|block| {
                Ok(BlockEntry {
                    id: base64(&block.id),
                    pieces: block
                        .content
                        .pieces()
                        .iter()
                        .map(|piece| match piece {
                            Piece::File { file, offset, len } => Ok(PieceEntry::File {
                                name: file.name.clone(),
                                offset: *offset,
                                len: *len,
                            }),
                            Piece::Zeros(len) => Ok(PieceEntry::Zeros(*len)),
                            Piece::Memory(_) => {
                                Err(io::Error::other("block data was not written to the folder"))
                            }
                        })
                        .collect::<io::Result<_>>()?,
                })
            })
            .collect::<io::Result<_>>()?;
        write_json(
            &self.blob_path(container, name),
            &BlobFile {
                name: name.to_owned(),
                version: blob.version.0,
                created: blob.created.0,
                kind: blob.kind,
                headers: blob.headers.clone(),
                metadata: (*blob.metadata).clone(),
                copy: blob.copy.as_deref().cloned(),
                attributes: blob.attributes.clone(),
                blocks,
            },
        )
    }

    /// Forgets a blob.
    pub(super) fn remove_blob(&self, container: &str, name: &str) -> io::Result<()> {
        remove_if_there(std::fs::remove_file(self.blob_path(container, name)))
    }

    /// From now on dropped data stays on disk.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn container_path(&self, name: &str) -> PathBuf {
        self.root
            .join("containers")
            .join(format!("{}.json", digest(name)))
    }
    fn blobs_of(&self, container: &str) -> PathBuf {
        self.root.join("blobs").join(digest(container))
    }
    fn blob_path(&self, container: &str, name: &str) -> PathBuf {
        let digest = digest(name);
        self.blobs_of(container)
            .join(&digest[..2])
            .join(format!("{digest}.json"))
    }
}

/// Names are hashed: a blob name may be longer than a file name and may hold any character.
fn digest(name: &str) -> String {
    ring::digest::digest(&ring::digest::SHA256, name.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{}: {what}; the folder was not written by this program or is damaged",
            path.display()
        ),
    )
}

fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(out),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.extend(files_below(&entry.path())?);
        } else {
            out.push(entry.path());
        }
    }
    Ok(out)
}

/// `None` for a half-written file that was never renamed to its name.
fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    if path.extension().is_none_or(|extension| extension != "json") {
        std::fs::remove_file(path)?;
        return Ok(None);
    }
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| damaged(path, &error.to_string()))
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let beside = dir.join(format!("{}.new", uuid::Uuid::new_v4().simple()));
    std::fs::write(&beside, serde_json::to_vec(value)?)?;
    std::fs::rename(&beside, path)
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
