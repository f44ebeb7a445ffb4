//! Shot boundaries beside PySceneDetect's, which `xtask/peer/shots.py` computed.

mod made;
mod videos;
