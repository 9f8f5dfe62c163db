//! The state that outlives the process: node ids, handles, dirty blocks, replies.
