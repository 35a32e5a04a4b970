"""The look of the HTML pages: one style sheet for light, dark, phone, desk and paper."""

STYLE = """
:root{color-scheme:light dark;
--paper:#fbfaf7;--card:#fff;--ink:#1d1b19;--soft:#6a645c;--line:#e6e1d8;--tint:#f3efe8;
--s0:#2f5fd0;--s1:#d9541e;--s2:#0f8a6d;--s3:#9a3fb5;--s4:#b98100;--s5:#5b6472;--chosen:#c4006a;
--good:#0f7d5f;--warn:#a06a00;--bad:#c23a2b;--heat:47,95,208;--edge:rgba(40,30,10,.28);
--shade:0 1px 2px rgba(40,30,10,.05),0 6px 24px rgba(40,30,10,.05)}
@media (prefers-color-scheme:dark){:root{
--paper:#151517;--card:#1d1d20;--ink:#eceae6;--soft:#a09a92;--line:#323237;--tint:#26262a;
--s0:#86a8ff;--s1:#ff9363;--s2:#4fd0ac;--s3:#d79bee;--s4:#f0c24b;--s5:#a9b2c0;--chosen:#ff6fb5;
--good:#55d3ab;--warn:#f0c24b;--bad:#ff8b7b;--heat:134,168,255;--edge:rgba(255,255,255,.28);--shade:none}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.6 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:break-word}
pre{white-space:pre-wrap;overflow-wrap:anywhere}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 clamp(16px,4vw,40px)}
header{padding-top:clamp(28px,6vw,64px)}
.kind{display:flex;align-items:center;gap:.6em;margin:0;color:var(--soft);font-size:.8rem;letter-spacing:.09em;text-transform:uppercase}
.kind::before{content:"";flex:none;width:62px;height:14px;background:
linear-gradient(var(--s0) 0 0) 0 0/14px 14px no-repeat,linear-gradient(var(--s1) 0 0) 16px 0/14px 14px no-repeat,
linear-gradient(var(--s2) 0 0) 32px 0/14px 14px no-repeat,linear-gradient(var(--s4) 0 0) 48px 0/14px 14px no-repeat}
h1{margin:.25em 0 .2em;font-weight:650;font-size:clamp(1.75rem,4.6vw,2.75rem);line-height:1.12;letter-spacing:-.022em;
overflow-wrap:anywhere}
.lead{max-width:46em;margin:.4em 0 0;color:var(--soft);font-size:clamp(1.02rem,1.6vw,1.2rem);line-height:1.55}
.lead strong{color:var(--ink);font-weight:600}
nav{display:flex;flex-wrap:wrap;gap:8px;margin:22px 0 0}
nav a{padding:4px 13px;border:1px solid var(--line);border-radius:99px;background:var(--card);color:var(--ink);
font-size:.86rem;text-decoration:none}
nav a:hover{border-color:var(--s0);color:var(--s0)}
section{margin-top:clamp(40px,6vw,68px);scroll-margin-top:16px}
h2{margin:0 0 .5em;font-weight:630;font-size:1.5rem;line-height:1.2;letter-spacing:-.014em}
h3{margin:1.8em 0 .4em;font-size:1.08rem}
p{max-width:46em;margin:.6em 0}
a{color:var(--s0)}
code{padding:.1em .35em;border-radius:5px;background:var(--tint);font:.88em ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,
"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(158px,100%),1fr));gap:12px;margin:28px 0 0}
.tiles div{padding:15px 17px 13px;border:1px solid var(--line);border-radius:14px;background:var(--card);box-shadow:var(--shade)}
.tiles dt{color:var(--soft);font-size:.82rem;line-height:1.3}
.tiles dd{margin:5px 0 0;font-weight:650;font-size:1.62rem;line-height:1.12;letter-spacing:-.02em;overflow-wrap:anywhere}
.tiles dd.detail{margin-top:6px;color:var(--soft);font-weight:400;font-size:.8rem;line-height:1.4;letter-spacing:0}
.tile.good dd:not(.detail){color:var(--good)}.tile.warn dd:not(.detail){color:var(--warn)}.tile.bad dd:not(.detail){color:var(--bad)}
.callout{max-width:56em;margin:20px 0;padding:11px 16px;border-left:4px solid var(--s0);border-radius:4px 12px 12px 4px;
background:var(--tint);font-size:.95rem}
.callout ul{margin:.3em 0 0;padding-left:1.2em}
.callout.good{border-color:var(--good)}.callout.warn{border-color:var(--warn)}.callout.bad{border-color:var(--bad)}
.scroll{max-width:100%;overflow-x:auto;border-radius:12px}
.scroll:focus-visible,summary:focus-visible,nav a:focus-visible{outline:2px solid var(--s0);outline-offset:2px}
.scroll:has(>table){margin:16px 0;border:1px solid var(--line);max-height:36rem;overflow-y:auto;background:
linear-gradient(90deg,var(--card) 40%,transparent) 0 0/48px 100% no-repeat local,
linear-gradient(270deg,var(--card) 40%,transparent) 100% 0/48px 100% no-repeat local,
linear-gradient(90deg,var(--edge),transparent) 0 0/18px 100% no-repeat scroll,
linear-gradient(270deg,var(--edge),transparent) 100% 0/18px 100% no-repeat scroll,var(--card)}
.scroll.whole:has(>table){max-height:none}
.whole td:first-child{position:sticky;left:0;background:var(--card)}.whole tr:hover td:first-child{background:var(--tint)}
table{width:100%;border-collapse:collapse;font-size:.91rem;line-height:1.4}
caption{padding:11px 14px 9px;color:var(--soft);font-size:.86rem;text-align:left}
th,td{padding:7px 14px;border-top:1px solid var(--line);text-align:left;vertical-align:middle}
td{max-width:26em}
td:first-child:not(.number){min-width:9em}
th{position:sticky;top:0;background:var(--tint);color:var(--soft);font-weight:550;font-size:.82rem;white-space:nowrap}
tbody tr:hover{background:var(--tint)}
.number{text-align:right;white-space:nowrap}
sup{margin-left:.15em;line-height:0;font-size:.72em}sup a{text-decoration:none}
.notes{max-width:60em;padding-left:2.2em;color:var(--soft);font-size:.88rem}
.notes li{margin:.4em 0;overflow-wrap:anywhere;scroll-margin-top:16px}
.notes li:target{background:var(--tint)}.notes strong{color:var(--ink)}
.strip{display:flex;gap:6px}.strip img{flex:none;width:96px}.strip img+img{margin-top:0}
.meter{display:inline-flex;align-items:center;gap:9px;white-space:nowrap}
.meter>span{position:relative;flex:none;width:84px;height:9px;border-radius:99px;background:var(--tint);
box-shadow:inset 0 0 0 1px var(--line)}
.meter b{position:absolute;inset:0 auto 0 0;border-radius:99px;background:var(--s0);opacity:.85}
.meter i{position:absolute;top:3.5px;height:2px;background:var(--ink);opacity:.75}
figure{margin:0;min-width:0;padding:14px;border:1px solid var(--line);border-radius:14px;background:var(--card);box-shadow:var(--shade);
break-inside:avoid}
figure.wide{margin:16px 0}
figcaption{margin-top:9px;color:var(--soft);font-size:.86rem;line-height:1.45;overflow-wrap:anywhere}
figcaption strong{color:var(--ink)}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:16px;margin:18px 0;align-items:start}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(var(--cell),100%),1fr));gap:14px;margin:18px 0}
.grid figure{padding:10px}
.grid figcaption{font-size:.82rem}
img{display:block;width:100%;height:auto;border-radius:7px}
img+img{margin-top:6px}
img.sharp{image-rendering:pixelated}
.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(62px,1fr));gap:6px}.maps img+img{margin-top:0}
details{margin:18px 0;border:1px solid var(--line);border-radius:14px;background:var(--card)}
summary{padding:11px 16px;font-weight:550;cursor:pointer}
details[open]>summary{border-bottom:1px solid var(--line)}
details>:not(summary){margin-left:16px;margin-right:16px}
svg{display:block;width:100%;height:auto;max-width:600px;margin:0 auto;overflow:visible}
svg.map{max-width:none;margin:0}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}
svg .name{fill:var(--ink);font-size:11.5px}
svg .axis{stroke:var(--soft);stroke-width:1;opacity:.6}
svg .rule{stroke:var(--line);stroke-width:1}
svg .guide{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 4;fill:none}
svg .whisker{stroke:var(--ink);stroke-width:1.3;opacity:.75}
svg .cell{fill:rgb(var(--heat))}
svg .cell.own{fill:var(--s2)}
svg .count{font-size:10px;fill:var(--ink);text-anchor:middle}
svg .dark{fill:var(--card)}
.fc{fill:var(--chosen)}.lc{fill:none;stroke:var(--chosen);stroke-width:2.2;stroke-dasharray:5 3}
.f0{fill:var(--s0)}.f1{fill:var(--s1)}.f2{fill:var(--s2)}.f3{fill:var(--s3)}.f4{fill:var(--s4)}.f5{fill:var(--s5)}
.l0,.l1,.l2,.l3,.l4,.l5{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.l0{stroke:var(--s0)}.l1{stroke:var(--s1)}.l2{stroke:var(--s2)}.l3{stroke:var(--s3)}.l4{stroke:var(--s4)}.l5{stroke:var(--s5)}
.l1{stroke-dasharray:8 4}.l2{stroke-dasharray:2 4}.l3{stroke-dasharray:10 3 2 3}
.legend{display:flex;flex-wrap:wrap;justify-content:center;gap:2px 18px;max-width:none;margin:2px 0 0;color:var(--soft);font-size:.82rem}
.legend span{display:inline-flex;align-items:center;gap:7px}
.legend svg{flex:none;width:26px;height:10px;margin:0}
footer{margin-top:clamp(48px,7vw,80px);padding-top:18px;padding-bottom:36px;color:var(--soft);font-size:.84rem}
@media (max-width:560px){.whole td:first-child:not(.number){min-width:6.5em}
.scroll td:first-child:not(.number){position:sticky;left:0;min-width:6.5em;max-width:40vw;background:var(--card);overflow-wrap:anywhere}
.grid{gap:10px}figure{padding:11px}th,td{padding:7px 10px}.tiles{grid-template-columns:1fr 1fr;gap:9px}
.tiles div{padding:12px 13px}.tiles dd{font-size:1.3rem}}
@media print{:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--tint:#f4f4f4;--shade:none;
--s0:#2f5fd0;--s1:#d9541e;--s2:#0f8a6d;--s3:#9a3fb5;--s4:#b98100;--s5:#5b6472;--chosen:#c4006a;--good:#0f7d5f;--warn:#a06a00;--bad:#c23a2b;--heat:47,95,208}
body{font-size:10.5pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
header,main,footer{max-width:none;padding-left:0;padding-right:0}nav{display:none}section{margin-top:24pt}
h2,h3,summary,caption{break-after:avoid}figure,.tiles div,tr{break-inside:avoid}
.scroll,.scroll:has(>table){overflow:visible;max-height:none}th,.whole td:first-child{position:static}
footer{margin-top:14pt;padding:6pt 0 0}
th,td{padding:3pt 7pt}table{font-size:9pt}pre{columns:2;font-size:8pt;line-height:1.35}
.row{grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:10px}.row figure{padding:9px}
.scroll,details{-webkit-box-decoration-break:clone;box-decoration-break:clone}
details::details-content{content-visibility:visible;display:block}
a{color:inherit;text-decoration:none}}
"""
