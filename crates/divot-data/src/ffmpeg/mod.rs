//! Reads other formats with the programs `ffmpeg` and `ffprobe`.
//!
//! The programs read only the given file: no standard input, no network, and no formats that refer to other
//! files (playlists, scripts).

mod decode;
mod matroska;
mod probe;
mod run;
mod sniff;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Result;
pub(crate) use probe::Probe;
use run::Run;
pub(crate) use sniff::{Still, sniff, still};

/// Demuxers that the programs may use. Others read further files or devices (`hls`, `concat`, `dash`,
/// `sdp`, `image2`, `lavfi`), or make a video from text (`tty`).
const FORMATS: &str = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,vvc,evc,av1,obu,ivf,\
    m4v,h263,h261,flv,live_flv,kux,asf,asf_o,ogg,mxf,gxf,nut,nsv,rm,swf,yuv4mpegpipe,dv,dnxhd,\
    dirac,vc1,vc1test,cavsvideo,avs2,avs3,mjpeg,mjpeg_2000,smjpeg,wtv,film_cpk,roq,smk,bink,flic,\
    idcin,vmd,4xm,ea,cine,r3d,mlv,mv,mtv,nuv,pva,pmp,psxstr,rl2,thp,tiertexseq,txd,vividas,vivo,\
    wc3movie,wsvqa,xmv,yop,dxa,c93,bethsoftvid,bfi,ivr,jv,lxf,lmlm4,brp,argo_brp,gif,apng,fits,\
    bmp_pipe,cri_pipe,dds_pipe,dpx_pipe,exr_pipe,gem_pipe,hdr_pipe,j2k_pipe,jpeg_pipe,\
    jpegls_pipe,jpegxl_pipe,jpegxl_anim,pam_pipe,pbm_pipe,pcx_pipe,pfm_pipe,pgm_pipe,pgmyuv_pipe,\
    pgx_pipe,phm_pipe,photocd_pipe,pictor_pipe,png_pipe,ppm_pipe,psd_pipe,qdraw_pipe,qoi_pipe,\
    sgi_pipe,sunrast_pipe,tiff_pipe,vbn_pipe,webp_pipe,xbm_pipe,xpm_pipe,xwd_pipe,\
    mp3,flac,wav,w64,aac,aiff,ape,tak,tta,wv,dsf,mpc,mpc8,amr,ac3,eac3,dts,caf,oma,voc,au";

/// The paths of the two programs, and their limits.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Path of `ffmpeg`. A plain name is searched on the PATH.
    pub ffmpeg: PathBuf,
    /// Path of `ffprobe`. A plain name is searched on the PATH.
    pub ffprobe: PathBuf,
    /// Longest time without output before a program is stopped.
    pub silence: Duration,
    /// Maximum number of pixels of a picture.
    pub max_pixels: u64,
}

impl Programs {
    /// Starts `ffprobe` on a file, with additional arguments.
    fn ffprobe<'a>(
        &'a self,
        path: &'a Path,
        codec: &'a str,
        arguments: &[&str],
    ) -> Result<Run<'a>> {
        let mut command = Command::new(&self.ffprobe);
        command.args(["-v", "error"]);
        self.restrict(&mut command);
        command.args(arguments).arg("-i").arg(input(path));
        Run::start(
            path,
            codec,
            &self.ffprobe,
            command,
            self.silence,
            self.max_pixels,
        )
    }

    /// Starts `ffmpeg` on a file, with arguments before and after the input. It writes to its standard
    /// output.
    fn ffmpeg<'a>(
        &'a self,
        path: &'a Path,
        codec: &'a str,
        before: &[String],
        after: &[&str],
    ) -> Result<Run<'a>> {
        let mut command = Command::new(&self.ffmpeg);
        command.args(["-v", "error", "-nostdin"]);
        self.restrict(&mut command);
        command.args(before).arg("-i").arg(input(path));
        command.args(after).arg("pipe:1");
        Run::start(
            path,
            codec,
            &self.ffmpeg,
            command,
            self.silence,
            self.max_pixels,
        )
    }

    fn restrict(&self, command: &mut Command) {
        let pixels = self.max_pixels.min(i32::MAX as u64).to_string();
        command
            .args(["-protocol_whitelist", "file", "-format_whitelist", FORMATS])
            .args(["-max_pixels", &pixels]);
    }
}

/// Returns the path as a URL of FFmpeg's `file` protocol, so that no name is taken for an option or
/// another URL.
fn input(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}
