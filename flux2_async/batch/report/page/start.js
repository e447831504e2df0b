
prepare();
fillControls();
listen();
select();
if (document.body.dataset.events) follow(document.body.dataset.events);
